"""Faults on purpose: each happens once in a run, at a given step, on a given rank, by the means by which it happens.

Processes die of SIGKILL, files are really damaged, and a full disk is a limit that the kernel enforces on what this
process writes (RLIMIT_FSIZE: EFBIG in place of ENOSPC, in the same system calls).
"""

import os
import random
import resource
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from moesaic.errors import MoesaicError
from moesaic.model.block import Block
from moesaic.recipe import Stage
from moesaic.resilience.incidents import report
from moesaic.train.observer import Observer, SavePhase

Kind = Literal[
    "kill_forward",
    "kill_backward",
    "kill_optimizer",
    "kill_copied",
    "kill_written",
    "corrupt",
    "full_disk",
    "slow",
    "nan",
    "hang",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
AT_A_SAVE: frozenset[Kind] = frozenset({"kill_copied", "kill_written", "corrupt", "full_disk"})
"""Kinds that need a checkpoint at their step."""
ENDS_RANKS: frozenset[Kind] = frozenset(KINDS) - {"full_disk", "slow", "nan"}
"""Kinds after which the supervisor has to start again."""

FULL_BYTES = 64 * 1024  # what a file may grow to on the full disk: logs yes, weights no
SLOW_S, SLOW_STEPS = 0.2, 12
DAMAGED_BYTES = 16


@dataclass(frozen=True)
class Fault:
    """What happens at which step on which rank. A kind of AT_A_SAVE waits for the save of that step."""

    kind: Kind
    step: int
    rank: int = 0

    def __post_init__(self) -> None:
        """Raises MoesaicError for what cannot happen."""
        if self.kind not in KINDS:
            raise MoesaicError(f"fault {self.kind!r}: there is no such kind; choose from {', '.join(KINDS)}")
        if self.step < 1 or self.rank < 0:
            raise MoesaicError(
                f"fault {self.kind} at step {self.step} on rank {self.rank}: steps count from 1, ranks from 0"
            )

    @property
    def name(self) -> str:
        """For files and tables."""
        return f"{self.kind}-{self.step}-{self.rank}"


class FaultInjector(Observer):
    """Makes the faults of one rank happen."""

    def __init__(self, faults: Sequence[Fault], run: Path, rank: int) -> None:
        self.run, self.rank = run, rank
        self._mine = [f for f in faults if f.rank == rank]
        self._folder = run / "faults"
        self._step = 0
        self._slow_until = 0
        self._limit: tuple[int, int] | None = None  # of file sizes, before the disk was full

    def stage_ready(self, stage: Stage, parts: Sequence[nn.Module], optimizer: torch.optim.Optimizer) -> None:
        """Attach to the first block here: forward, backward; and to the optimizer."""
        if not self._mine:
            return
        block = first_block(parts)
        block.register_forward_pre_hook(self._before_forward)
        block.register_forward_hook(self._after_forward)
        optimizer.register_step_pre_hook(lambda *_: self._fire(self._step, "kill_optimizer"))

    def step_begins(self, step: int) -> None:
        """See `Observer`."""
        self._step = step

    def saving(self, step: int, phase: SavePhase) -> None:
        """See `Observer`."""
        if phase == "copied":
            self._free_disk()  # the save that fails is this fault's; the next one finds space
            self._fire(step, "kill_copied")
            if self._due(step, "full_disk"):
                self._limit = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_BYTES, self._limit[1]))
        elif phase == "written":
            self._fire(step, "kill_written")
        elif self._due(step, "corrupt"):
            damage(self.run / "checkpoints" / f"step_{step:08d}")
            _die()

    def _before_forward(self, *_: Any) -> None:
        self._fire(self._step, "kill_forward")
        if self._due(self._step, "hang"):
            _hang()
        if self._due(self._step, "slow"):
            self._slow_until = self._step + SLOW_STEPS
        if self._step < self._slow_until:
            _sleep_in_forward()

    def _after_forward(self, module: nn.Module, inputs: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
            tensor.register_hook(self._in_backward)

    def _in_backward(self, gradient: torch.Tensor) -> torch.Tensor | None:
        self._fire(self._step, "kill_backward")
        if not self._due(self._step, "nan"):
            return None
        struck = gradient.clone()  # from here it spreads to all that is behind in this rank's backward pass
        struck[(0,) * struck.ndim] = torch.nan
        return struck

    def _fire(self, step: int, kind: Kind) -> None:
        if self._due(step, kind):
            _die()

    def _due(self, step: int, kind: Kind) -> bool:
        """Whether a fault of this kind happens now; it is marked before, for it may be the last thing we do."""
        for fault in self._mine:
            # A save may be left out while the one before is still being written: the fault waits for the next.
            now = fault.step <= step if kind in AT_A_SAVE else fault.step == step
            if fault.kind == kind and now and self._mark(fault):
                report(self.run, "fault", name=fault.kind, step=step, rank=self.rank)
                return True
        return False

    def _mark(self, fault: Fault) -> bool:
        self._folder.mkdir(exist_ok=True)
        try:
            os.close(os.open(self._folder / fault.name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        return True

    def _free_disk(self) -> None:
        if self._limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, self._limit)
            self._limit = None


def happened(run: Path) -> set[str]:
    """Names of the faults that have happened in a run."""
    return {path.name for path in (run / "faults").glob("*")}


def damage(checkpoint: Path) -> Path:
    """Flip bits in the middle of the largest file of a checkpoint and return its path; its size stays."""
    file = max(checkpoint.glob("*.distcp"), key=lambda p: p.stat().st_size)
    middle = file.stat().st_size // 2
    with file.open("r+b") as opened:
        opened.seek(middle)
        content = opened.read(DAMAGED_BYTES)
        opened.seek(middle)
        opened.write(bytes(b ^ 0xFF for b in content))
    return file


def first_block(parts: Sequence[nn.Module]) -> nn.Module:
    """The first transformer block of what this rank holds, or else the first module that has weights of its own."""
    modules = [m for part in parts for m in part.modules()]
    blocks: list[nn.Module] = [m for m in modules if isinstance(m, Block)]
    return (blocks or [m for m in modules if any(True for _ in m.parameters(recurse=False))])[0]


def schedule(
    count: int, *, seed: int, steps: int, every: int, world: int, kinds: Sequence[Kind] = KINDS
) -> tuple[Fault, ...]:
    """`count` different faults over `steps` steps with a checkpoint each `every`, drawn from `seed`, by step.

    The last `every` steps and the first checkpoint stay free, so that each fault has something to fall back on and
    something to show afterwards. Raises MoesaicError when there is no room for so many.
    """
    first, last = every + 1, steps - every
    saves = list(range(2 * every, last + 1, every))
    room = sum((len(saves) if k in AT_A_SAVE else max(0, last - first + 1)) * world for k in kinds)
    if count > room // 2 or not saves:
        raise MoesaicError(
            f"{count} faults in {steps} steps: there is room for {room // 2}; take more steps or fewer faults"
        )
    dice = random.Random(seed)
    found: set[Fault] = set()
    while len(found) < count:
        kind = dice.choice(list(kinds))
        step = dice.choice(saves) if kind in AT_A_SAVE else dice.randint(first, last)
        rank = dice.randrange(world)
        if kind == "corrupt":
            rank = 0  # one damaged file is enough
        if kind == "full_disk":
            rank = rank or world - 1  # rank 0 also writes metrics.jsonl, whose lines would wait in memory
        found.add(Fault(kind, step, rank))
    return tuple(sorted(found, key=lambda f: (f.step, f.kind, f.rank)))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    while True:  # a signal that asks for a stop is heard, and changes nothing
        time.sleep(3600)


def _sleep_in_forward() -> None:
    time.sleep(SLOW_S)
