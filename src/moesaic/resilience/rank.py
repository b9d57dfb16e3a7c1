"""What surrounds a training function on each rank: its pulse, its last words, and its end when nobody waits for it."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from moesaic.errors import MoesaicError
from moesaic.resilience.beats import BeatFile, Heartbeat, alive, offer_stack, read_beats
from moesaic.resilience.localise import GradientWatch, WorkClock
from moesaic.resilience.outcome import Outcome
from moesaic.train.observer import Observer, Observers

STOPPED = 128 + signal.SIGTERM  # exit code
LEAVE_S = 60.0
ORPHAN_S = 60.0  # for the checkpoint of a rank whose supervisor is gone


@dataclass(frozen=True)
class Start:
    """One start of all ranks. `number` counts from 0; `died` is when the ranks before it did."""

    run: Path
    number: int
    world: int
    threads: int
    died: float | None = None


@dataclass
class Rank:
    """What a training function gets to know about where it runs."""

    number: int
    start: Start
    beats: BeatFile
    _clock: WorkClock | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._clock = WorkClock() if self.start.world > 1 else None

    def observer(self, *more: Observer) -> Observer:
        """Heartbeats with the clock that finds slow ranks, then `more`, then the watch over gradients."""
        pulse = Heartbeat(self.beats, None if self._clock is None else self._clock.take)
        return Observers(pulse, *more, GradientWatch(self.start.run, self.number, always=bool(more)))


Worker = Callable[..., Outcome]
"""`worker(rank, *arguments)`, defined at the top of a module so that another process finds it."""


def run_rank(worker: Worker, start: Start, arguments: tuple[Any, ...]) -> Outcome:
    """Entry point of a rank under the supervisor. Raises what `worker` raises, after writing it down."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)  # Ctrl-C reaches the supervisor alone, which passes it on once: a second one means "at once"
    torch.set_num_threads(start.threads)
    number = int(os.environ["RANK"])
    beats = BeatFile(start.run, number)
    threading.Thread(target=_leave_with_supervisor, daemon=True).start()
    with offer_stack(start.run, number):
        try:
            outcome = worker(Rank(number, start, beats), *arguments)
        except BaseException as error:
            beats.failed(error, mendable=isinstance(error, MoesaicError))
            if not isinstance(error, MoesaicError):
                traceback.print_exc(file=sys.stderr)
            raise
    if outcome.kind == "stopped":
        # The launcher that passed the signal on waits for processes, not for values: leave without handing one over.
        beats.write(end="stopped")
        _wait_for_others(start, number)
        sys.exit(STOPPED)
    beats.write(end="returned")
    return outcome


def _wait_for_others(start: Start, number: int) -> None:
    """Until all ranks are as far: the first one to leave would have the rest ended."""
    deadline = time.monotonic() + LEAVE_S
    while time.monotonic() < deadline:
        others = [b for r, b in read_beats(start.run).items() if r != number]
        if all(b.end or not alive(b.pid) for b in others):
            return
        time.sleep(0.02)


def _leave_with_supervisor() -> None:
    """A rank whose supervisor was killed saves and ends, like one that is asked to stop; it never goes on alone."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_S)
    os.kill(os.getpid(), signal.SIGKILL)
