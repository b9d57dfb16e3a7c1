"""Which numbers of micro-batches a schedule can run, and the nearest ones that it can."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from moesaic.errors import PlanError

Engine = Literal["torch", "megatron"]


def schedulable(m: float, p: int, v: int = 1, engine: Engine = "torch") -> bool:
    """Whether `m` micro-batches run on `p` ranks with `v` chunks each (1: plain 1F1B).

    torch 2.13: `Schedule1F1B` needs m >= p; `ScheduleInterleaved1F1B` and `ScheduleInterleavedZeroBubble` need whole
    rounds, m % max(1, m // p) = 0. Megatron: plain 1F1B takes any m; interleaved needs m % p = 0 with its default of p
    micro-batches in a group (`microbatch_group_size_per_vp_stage`). A fraction never runs.
    """
    if m < 1 or m != int(m):
        return False
    if p == 1:
        return True
    if engine == "megatron":
        return v == 1 or m % p == 0
    return m >= p if v == 1 else m % max(1, m // p) == 0


def nearest_schedulable(m: float, p: int, v: int = 1, engine: Engine = "torch") -> tuple[int | None, int]:
    """Largest number below `m` (None when there is none) and smallest above `m` that run."""
    below = next((n for n in range(_last_below(m), 0, -1) if schedulable(n, p, v, engine)), None)
    above = max(1, int(m) + 1)
    while not schedulable(above, p, v, engine):
        above += 1
    return below, above


def _last_below(m: float) -> int:
    return int(m) - 1 if m == int(m) else int(m)


@dataclass(frozen=True)
class Offer:
    """What to run instead of a number of micro-batches that does not run."""

    everywhere: int | None  # largest multiple of p below: every engine takes it
    below: int | None  # torch's nearest
    above: int

    @property
    def best(self) -> tuple[int, ...]:
        """The two numbers to offer first: the one below that every engine takes (torch's if there is none), and
        torch's nearest above."""
        low = self.below if self.everywhere is None else self.everywhere
        return (self.above,) if low is None else (low, self.above)


def offer(m: float, p: int, v: int = 1) -> Offer:
    """Numbers of micro-batches near `m` that run."""
    below, above = nearest_schedulable(m, p, v)
    return Offer(_last_below(m) // p * p or None, below, above)


def advice(m: float, p: int, v: int = 1) -> str | None:
    """One sentence that says why `m` cannot be scheduled and what can; None when every engine runs it."""
    if schedulable(m, p, v) and schedulable(m, p, v, "megatron"):
        return None
    number = f"{m:.4g}"
    instead = offer(m, p, v)
    if m != int(m):
        return f"{number} micro-batches a replica are not a whole number: use {_or(instead.best)}"
    if schedulable(m, p, v):
        multiple = f" ({_or(sorted({m // p * p, -(-m // p) * p} - {0}))})"
        return f"{number} micro-batches run interleaved in PyTorch, but Megatron wants a multiple of pp = {p}{multiple}"
    if v == 1:
        return f"{number} micro-batches are fewer than pp = {p}, which PyTorch's 1F1B refuses: use {_or(instead.best)}"
    others = "" if instead.below in (None, instead.everywhere) else f"; PyTorch also takes {instead.below}"
    whole = "" if instead.everywhere is None else f" ({instead.everywhere} is a multiple of pp = {p}: every engine)"
    return (
        f"{number} micro-batches cannot be scheduled interleaved on pp = {p}: they do not make {int(m) // p} equal "
        f"rounds; use {_or(instead.best)}{whole}{others}"
    )


def _or(numbers: Sequence[float]) -> str:
    return " or ".join(f"{n:g}" for n in numbers)


def must_be_schedulable(m: int, p: int, v: int) -> None:
    """Raises PlanError with the advice when PyTorch cannot interleave `m` micro-batches."""
    if not schedulable(m, p, v):
        raise PlanError(advice(m, p, v) or "")


def whole_batches(
    tokens: float, seq_len: int, replicas: int, micro_batch: int, p: int, v: int = 1, engine: Engine = "torch"
) -> list[int]:
    """Global batches in tokens near `tokens` that run: the batch itself, or those of `offer`.

    `replicas` is dp; a replica takes `micro_batch` sequences of `seq_len` tokens at a time.
    """
    unit = seq_len * replicas * micro_batch
    m = tokens / unit
    if schedulable(m, p, v, engine):
        return [int(tokens)]
    near = offer(m, p, v).best if engine == "torch" else nearest_schedulable(m, p, v, engine)
    return [n * unit for n in near if n]
