"""Which rank computes what in which order: pipeline schedules as PyTorch 2.13 builds them.

Legend: p ranks, v chunks on each rank, p x v stages counted along the model, m micro-batches. An operation is a forward
(F), a whole backward (B), or its halves: gradient of the input (I) and of the weights (W).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from moesaic.errors import PlanError
from moesaic.plan.schedule.feasible import must_be_schedulable

Kind = Literal["gpipe", "1f1b", "interleaved", "zero_bubble", "zbv"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Op(NamedTuple):
    """One operation of one stage on one micro-batch."""

    kind: str  # F, B, I or W
    stage: int
    micro_batch: int


@dataclass(frozen=True)
class Orders:
    """The operations of every rank, in the order in which it computes them."""

    kind: Kind
    p: int
    m: int
    v: int
    ranks: tuple[tuple[Op, ...], ...]

    def rank_of(self, stage: int) -> int:
        """The rank that holds a stage: round and round, or down and up again in zbv."""
        return 2 * self.p - 1 - stage if self.kind == "zbv" and stage >= self.p else stage % self.p


def orders(kind: Kind, p: int, m: int, v: int = 1) -> Orders:
    """Orders of a schedule on `p` ranks with `v` chunks each for `m` micro-batches.

    `1f1b` is PipeDream-flush (Narayanan et al. 2021, arXiv:2104.04473, fig. 4), `interleaved` its version with chunks
    in PyTorch's rounds of m // (m // p) micro-batches, `zero_bubble` the same with split backwards (ZB-H1 of Qi et al.
    2024, arXiv:2401.10241, sec. 2.1), `zbv` its sec. 6. Raises PlanError for an unknown kind, a wrong number of chunks,
    or micro-batches that do not make whole rounds.
    """
    if kind not in KINDS:
        raise PlanError(f"no schedule '{kind}'; use one of {', '.join(KINDS)}")
    if min(p, m, v) < 1:
        raise PlanError(f"{kind} on {p} ranks, {v} chunks, {m} micro-batches: each must be at least 1")
    wanted = {"gpipe": 1, "1f1b": 1, "zbv": 2}.get(kind, v)
    if v != wanted:
        raise PlanError(f"{kind} has {wanted} chunk{'s' * (wanted > 1)} on each rank, not {v}; use interleaved for {v}")
    if v > 1 and kind != "zbv":
        must_be_schedulable(m, p, v)
    build = {"gpipe": _gpipe, "1f1b": _1f1b, "zbv": _zbv}.get(kind)
    if build is not None:
        ranks = tuple(tuple(build(p, m, rank)) for rank in range(p))
    else:
        ranks = tuple(tuple(_interleaved(p, m, v, rank, split=kind == "zero_bubble")) for rank in range(p))
    return Orders(kind, p, m, v, ranks)


def _gpipe(p: int, m: int, rank: int) -> Iterator[Op]:
    yield from (Op("F", rank, i) for i in range(m))
    yield from (Op("B", rank, i) for i in range(m))


def _1f1b(p: int, m: int, rank: int) -> Iterator[Op]:
    ahead = min(m, p - rank)  # forwards before the first backward
    yield from (Op("F", rank, i) for i in range(ahead))
    for i in range(m):
        yield Op("B", rank, i)
        if ahead + i < m:
            yield Op("F", rank, ahead + i)


def _interleaved(p: int, m: int, v: int, rank: int, split: bool) -> Iterator[Op]:
    """Rounds of micro-batches: all of a round pass one chunk, then the next chunk, before the next round begins."""
    width = m // max(1, m // p)  # micro-batches of a round
    n = m * v

    def op(kind: str, k: int) -> Op:  # the k-th operation of its kind on this rank
        turn, i = divmod(k, width)
        chunk = turn % v if kind == "F" else v - 1 - turn % v
        return Op(kind, chunk * p + rank, turn // v * width + i)

    # Without a split a gradient returns after a forward and a whole backward per rank: two forwards fit in between.
    ahead = min(n, (v - 1) * width + (1 if split else 2) * (p - 1 - rank))
    yield from (op("F", k) for k in range(ahead))
    for k in range(n):
        if ahead + k < n:
            yield op("F", ahead + k)
        yield op("I" if split else "B", k)
        if split and k >= rank:  # rank r keeps r weight gradients back for the time when it would wait
            yield op("W", k - rank)
    if split:
        yield from (op("W", k) for k in range(max(0, n - rank), n))


def _zbv(p: int, m: int, rank: int) -> Iterator[Op]:
    """Two chunks in a V: a rank's first chunk runs down the model, its second one up."""
    n, r = max(m, 2 * p - 1), rank  # the pattern needs 2 p - 1 micro-batches; those beyond m are left out below
    pattern: list[str] = ["F0"] * (2 * (p - r) - 1) + ["F1", "F0"] * r + ["F1", "I1", "W1"] * (p - r)
    for i in range(n - p):
        pattern += ["F0"] * (i < n - (2 * p - 1 - r)) + ["I0", "W0", "F1", "I1", "W1"]
    pattern += ["I0", "I1"] * r + ["I0", "W0"] * (p - r) + ["W1"] * r + ["W0"] * r
    yield from (op for op in _numbered(pattern, (r, 2 * p - 1 - r)) if op.micro_batch < m)


def _numbered(pattern: Sequence[str], stages: tuple[int, int]) -> Iterator[Op]:
    """Each kind of operation of each chunk takes the micro-batches in turn."""
    done: Counter[str] = Counter()
    for name in pattern:
        yield Op(name[0], stages[int(name[1])], done[name])
        done[name] += 1


def in_flight(plan: Orders) -> list[int]:
    """Peak number of chunk activations that each rank holds: from a forward to the end of its last backward.

    One is 1/v of the activations of a micro-batch on the rank. For 1f1b it is min(m, p - rank); for interleaved on the
    first rank v p + p - 1, that is p (1 + (p - 1) / (p v)) micro-batches (Korthikanti et al. 2022, arXiv:2205.05198,
    sec. 4.2.3). A split backward could free a part after I; here all is held until W.
    """
    peaks = []
    for order in plan.ranks:
        held = peak = 0
        for op in order:
            held += {"F": 1, "B": -1, "W": -1}.get(op.kind, 0)
            peak = max(peak, held)
        peaks.append(peak)
    return peaks
