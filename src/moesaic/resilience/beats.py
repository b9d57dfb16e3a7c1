"""Heartbeats: where each rank stands, in a file that it overwrites in place at each phase of a step.

`RUN/heartbeats/rank_N` holds one record of fixed length, written with one system call (a few microseconds) and without
waiting for the disk: it must survive the process, not the machine. The system replaces a record piece by piece under a
reader's eyes, so the record begins with its checksum: a reader takes one that is whole, or looks again.
`RUN/heartbeats/stack_N` receives the Python stack of a rank that is asked for it with SIGUSR1, also when it is stuck
in C++.
"""

import contextlib
import faulthandler
import json
import os
import signal
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

from moesaic.resilience.places import BRIDGES
from moesaic.train.observer import Observer, SavePhase

FOLDER = "heartbeats"
RECORD = 2048  # bytes, of which the first eight are the CRC-32 of the rest
TEXT = 1000  # characters of an error that fit

Phase = Literal["start", "step", "update", "between", "saving"]
"""`start`: before the first step of this process. `step`: data, forward and backward. `update`: gradients reduced,
weights updated. `between`: after a step (logging, evaluation, next stage). `saving`: state being copied or written."""


@dataclass(frozen=True)
class Beat:
    """The last sign of life of one rank. Times in seconds since the epoch."""

    rank: int
    pid: int
    at: float
    phase: Phase = "start"
    step: int = 0  # the one that runs, or the last one
    steps: int = 0  # done by this process
    first: int = 0  # the step this process began with
    first_at: float = 0.0  # when it began that one
    seconds: float = 0.0  # of the last step
    working: float | None = None  # seconds of the last step not spent waiting for other ranks, where known
    busy_in: str = ""  # where it spent most of them
    end: Literal["", "returned", "stopped", "failed"] = ""
    error: str = ""  # class of the exception
    text: str = ""  # its message
    mendable: bool = False  # a MoesaicError: no restart helps, the user can


class BeatFile:
    """The record of one rank, owned by the process that writes it."""

    def __init__(self, run: Path, rank: int) -> None:
        folder = run / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(folder / f"rank_{rank}", os.O_WRONLY | os.O_CREAT, 0o644)
        self.beat = Beat(rank, os.getpid(), time.time())
        self.write()

    def write(self, **changes: Any) -> None:
        """Overwrite the record with these fields changed and the time now."""
        self.beat = replace(self.beat, at=time.time(), **changes)
        body = json.dumps(asdict(self.beat)).encode().ljust(RECORD - 8)[: RECORD - 8]
        with contextlib.suppress(OSError):  # a full disk: the run must not die of its pulse being taken
            os.pwrite(self._descriptor, b"%08x" % zlib.crc32(body) + body, 0)

    def failed(self, error: BaseException, mendable: bool) -> None:
        """This rank ends with `error`."""
        text = (str(error).strip() or type(error).__name__)[:TEXT].encode("ascii", "replace").decode()
        self.write(end="failed", error=type(error).__name__, text=text, mendable=mendable)


class Heartbeat(Observer):
    """Writes a beat at each phase of each step."""

    def __init__(self, file: BeatFile, working: Callable[[], tuple[float, str]] | None = None) -> None:
        """`working`: seconds worked since it was last asked, and where (`WorkClock.take`)."""
        self.file, self.working = file, working
        self._began = 0.0

    def step_begins(self, step: int) -> None:
        """See `Observer`."""
        self._began = time.perf_counter()
        if self.working is not None:
            self.working()  # what lies between steps does not count
        if not self.file.beat.first:
            self.file.write(phase="step", step=step, first=step, first_at=time.time())
        else:
            self.file.write(phase="step", step=step)

    def gradients_ready(self, step: int) -> None:
        """See `Observer`."""
        self.file.write(phase="update", step=step)

    def step_ends(self, line: Mapping[str, Any]) -> None:
        """See `Observer`."""
        seconds = time.perf_counter() - self._began
        working, place = (None, "") if self.working is None else self.working()
        steps = self.file.beat.steps + 1
        self.file.write(phase="between", steps=steps, seconds=seconds, working=working, busy_in=place)

    def saving(self, step: int, phase: SavePhase) -> None:
        """See `Observer`. A save that goes on behind training does not hide where training stands."""
        if self.file.beat.phase in ("between", "saving"):
            self.file.write(phase="between" if phase == "committed" else "saving")
        else:
            self.file.write()


def read_beats(run: Path) -> dict[int, Beat]:
    """The last beat of each rank that has begun."""
    out: dict[int, Beat] = {}
    for path in (run / FOLDER).glob("rank_*"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            beat = Beat(**json.loads(_whole(path)))
            out[beat.rank] = beat
    return out


def _whole(path: Path, looks: int = 5) -> bytes:
    """The record without its checksum, or b"" where it was being replaced at each of a few looks."""
    for _ in range(looks):
        record = path.read_bytes()
        if record[:8] == b"%08x" % zlib.crc32(record[8:]):
            return record[8:]
    return b""


def clear_beats(run: Path) -> None:
    """Forget the ranks of the start before."""
    for path in (run / FOLDER).glob("*_*"):
        path.unlink(missing_ok=True)


def alive(pid: int) -> bool:
    """Whether a process of this number is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def offer_stack(run: Path, rank: int) -> IO[str]:
    """Make this process write its Python stack into `stack_{rank}` at each SIGUSR1; keep what is returned."""
    file = (run / FOLDER / f"stack_{rank}").open("w", encoding="utf-8")
    faulthandler.register(signal.SIGUSR1, file=file, all_threads=False)
    return file


def ask_stack(run: Path, beat: Beat, wait: float = 0.3) -> str:
    """Where the main thread of a rank is, innermost first, as "file.py:12 function", or ""."""
    path = run / FOLDER / f"stack_{beat.rank}"
    if not path.exists():
        return ""
    with contextlib.suppress(ProcessLookupError):
        os.kill(beat.pid, signal.SIGUSR1)
    time.sleep(wait)
    return innermost(path.read_text(encoding="utf-8", errors="replace"))


def innermost(dump: str) -> str:
    """The innermost frame of the last stack in a dump of faulthandler."""
    for line in dump.rpartition("Stack (most recent")[2].splitlines():
        words = line.strip().split('"')
        if words[0] == "File " and len(words) == 3:
            number, _, function = words[2].removeprefix(", line ").partition(" in ")
            if (file := Path(words[1]).name) not in BRIDGES:
                return f"{file}:{number} {function}"
    return ""
