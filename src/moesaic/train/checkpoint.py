"""Checkpoints that can be trusted: complete, verified, and found again after any kind of death.

A save copies the state to host memory and hands it to a thread, which writes `step_00000123.partial/`, gives it a
manifest of checksums, renames it to `step_00000123/`, and only then adds the file `COMMITTED`. Whoever dies before
that leaves something that the next start passes over. Training goes on meanwhile: the thread talks to those of the
other ranks over a process group of its own.

The thread is no daemon: an interpreter that ends, even by an exception, first lets the save under way end. A run
calls `wait` before it leaves its process group, or that save fails for want of it.

torch writes `.metadata` as a pickle and there is no other way to read it. Its checksum is verified first,
which protects from damage, not from malice: load only checkpoints that someone you trust has written. All
else is read without pickle.
"""

import contextlib
import json
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException

from moesaic.errors import CheckpointError
from moesaic.train.checkpoint_files import (
    EXTRA,
    MARKER,
    CheckpointFiles,
    Fingerprints,
    fingerprints_of_rank,
    problem_of,
)
from moesaic.train.checkpoint_tensors import (
    cause_of,
    match_names,
    read_tensors,
    refuse_left_over,
    silence_torch,
    write_tensors,
)
from moesaic.train.host_copy import HostCopy, Pending
from moesaic.train.ranks import RankLostError, Ranks
from moesaic.train.state_tree import flatten_state

__all__ = ["CheckpointStore", "SaveReport", "problem_of"]

_LOGGER = logging.getLogger(__name__)
_WAITS_S = (1.0, 2.0, 5.0)  # before the first, second and every further try


class _SaveError(Exception):
    """A save that ended without a checkpoint; the message is the cause in one line."""


@dataclass(frozen=True)
class SaveReport:
    """How one save went on this rank."""

    step: int
    blocked_seconds: float  # that training stood still for it, waiting for an earlier save included
    seconds: float  # from the call to the commit, or to giving up
    bytes: int  # of the whole checkpoint, of all ranks; 0 without one
    committed: bool


@dataclass
class _Job:
    """A save under way."""

    step: int
    extra: bytes
    pin: bool
    pending: Pending
    began: float
    background: bool
    blocked: float = 0.0  # seconds
    copied: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    size: int = 0  # bytes, once committed
    error: BaseException | None = None  # a bug, not a failure of the disk


class CheckpointStore:
    """The folder `checkpoints/` of a run.

    Under a process group every rank makes the store and makes every call, in the same order and from one thread;
    rank 0 keeps the books.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        retries: int,
        warn: Callable[[str], None] = _LOGGER.warning,
        on_phase: Callable[[int, str], None] | None = None,
    ) -> None:
        """Keep the newest `keep` checkpoints besides pinned ones; try a failed save `retries` more times.

        `warn` is called on rank 0, `on_phase(step, phase)` on every rank, both from any thread. Phases: "copied" (the
        state is in host memory), "written" (all tensors are on disk, nothing is committed), "committed".
        """
        self.folder, self.retries, self.warn = folder, retries, warn
        self._on_phase = on_phase
        self._files = CheckpointFiles(folder, keep)
        self._ranks = Ranks()
        self._copy = HostCopy()
        self._job: _Job | None = None
        self._committed = True  # how the last save ended
        self._reports: queue.SimpleQueue[SaveReport] = queue.SimpleQueue()
        self._verified: Path | None = None  # the last one hashed, so that it is hashed only once
        silence_torch()

    def save(
        self,
        step: int,
        state: dict[str, Any],
        extra: dict[str, Any],
        pin: bool = False,
        background: bool = True,
        overlap: bool = False,
    ) -> bool:
        """Save `step`. In the background: True once the state is copied; else: whether it was committed.

        `state` is a tree of dicts whose leaves are tensors or DTensors, on each rank those that it holds; one name
        may be on several. `extra` must survive JSON: string keys, no tuples that must stay tuples; rank 0's counts. A
        pinned checkpoint is never pruned. Checkpoints of later steps are removed: they belong to a history that was
        left by resuming before it. With `overlap` the copy is made in the background too, and the caller calls
        `wait_copied` before it changes any tensor of `state`. An earlier save is waited for. A save that fails warns.
        Raises TypeError for a leaf or an `extra` that cannot be stored.
        """
        began = time.perf_counter()
        tensors = flatten_state(state)
        document = json.dumps(extra, indent=1).encode()
        self.wait()
        self._verified = None
        job = _Job(step, document, pin, self._copy.begin(tensors), began, background)
        if not overlap:
            self._copy_now(job)
        job.blocked = time.perf_counter() - began
        self._job = job
        try:
            threading.Thread(target=self._run, args=(job,), name=f"save of step {step}", daemon=False).start()
        except RuntimeError:  # the system gives no more threads: there is nothing to wait for
            self._job = None
            raise
        if background:
            return True
        return self.wait()

    def wait_copied(self) -> None:
        """Wait until the state of the last save may change again."""
        if self._job is not None:
            began = time.perf_counter()
            self._job.copied.wait()
            self._job.blocked += time.perf_counter() - began

    def wait(self) -> bool:
        """Wait for the save under way, if any. False when the last save ended without a checkpoint.

        Raises what ended it if that was a bug rather than a disk.
        """
        job = self._job
        if job is not None:
            # Not Thread.join: where Ctrl-C interrupts that, Python before 3.13 takes the thread for ended and leaves it
            # behind when the interpreter ends.
            job.ended.wait()
            self._job = None
            self._committed = job.size > 0
            if job.error is not None:
                raise job.error
        return self._committed

    def reports(self) -> list[SaveReport]:
        """Saves that have ended since the last call, in order."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._reports.get_nowait())
        return found

    def newest_good(self) -> Path | None:
        """The newest checkpoint that is complete and undamaged; warns about each one that it passes over.

        Removes what an interrupted save left behind (`*.partial`).
        """
        self.wait()

        def names() -> list[str]:
            self._files.remove_partials()
            return [path.name for path in self._files.newest_first()]

        self._verified = None
        for name in self._ranks.on_first(names):
            problem = self._problem_of(self.folder / name)
            if problem is None:
                self._verified = self.folder / name
                break
            self._warn_once(f"passed over checkpoint {name}: {problem}")
        return self._verified

    def any_committed(self) -> bool:
        """Whether there is a checkpoint that was once complete, good or bad by now."""
        self.wait()
        return self._ranks.on_first(lambda: any((path / MARKER).exists() for path in self._files.newest_first()))

    def extra(self, path: Path) -> dict[str, Any]:
        """What the caller added to a checkpoint, without tensors. Raises CheckpointError if it is damaged."""
        self.wait()
        if path != self._verified:
            if problem := self._problem_of(path):
                raise CheckpointError(f"checkpoint {path} cannot be loaded: {problem}; resume from another one")
            self._verified = path
        text = self._ranks.on_first(lambda: (path / EXTRA).read_text(encoding="utf-8"))
        extra: dict[str, Any] = json.loads(text)
        return extra

    def load(self, path: Path, state: dict[str, Any]) -> dict[str, Any]:
        """Fill this rank's `state` in place, bit for bit, and return `extra`.

        `state` is what some layout, not necessarily that of the save, holds on this rank; views are filled where they
        lie. Top-level entries may be left out on all ranks (to load only the model, say). Raises CheckpointError, the
        same on all ranks, if the checkpoint is damaged, or a tensor is missing, left over on every rank, or of
        another shape or type; then `state` is unchanged.
        """
        extra = self.extra(path)
        tensors = flatten_state(state)
        entries = {str(key).split(".")[0] for key in state}
        found = self._ranks.on_all(lambda: (match_names(path, tensors), set(tensors), entries))
        wanted = set().union(*(names for _, names, _ in found))
        refuse_left_over(path, found[0][0], wanted, set().union(*(entries for *_, entries in found)))
        self._ranks.on_all(lambda: read_tensors(path, tensors))
        return extra

    def _copy_now(self, job: _Job) -> None:
        job.pending.copy()
        self._phase(job.step, "copied")
        job.copied.set()

    def _run(self, job: _Job) -> None:
        try:
            if not job.copied.is_set():
                self._copy_now(job)
            self._write_with_retries(job)
            if job.size:
                self._phase(job.step, "committed")
        except BaseException as error:
            job.error = error
        finally:
            job.copied.set()
            seconds = time.perf_counter() - job.began
            blocked = job.blocked if job.background else seconds
            self._reports.put(SaveReport(job.step, blocked, seconds, job.size, job.size > 0))
            job.ended.set()

    def _write_with_retries(self, job: _Job) -> None:
        for attempt in range(self.retries + 1):
            try:
                job.size = self._write(job)
                return
            except _SaveError as error:
                more = attempt < self.retries and not isinstance(error.__cause__, RankLostError)
                ending = f"try {attempt + 2} of {self.retries + 1} follows" if more else "training goes on without it"
                self._warn_once(f"checkpoint at step {job.step} was not saved: {error}; {ending}; check {self.folder}")
                if not more:
                    return
                time.sleep(_WAITS_S[min(attempt, len(_WAITS_S) - 1)])

    def _write(self, job: _Job) -> int:
        """One try; the size of the checkpoint. Raises _SaveError, on every rank alike, and leaves no partial behind."""
        ranks, partial = self._ranks, self._files.partial(job.step)

        def finish_tensors() -> Fingerprints:
            self._phase(job.step, "written")
            return fingerprints_of_rank(partial, ranks.rank)

        try:
            ranks.on_first(lambda: self._files.begin(job.step))
            write_tensors(partial, job.pending.pieces, ranks)
            tensors = {name: mark for found in ranks.on_all(finish_tensors) for name, mark in found.items()}
            return ranks.on_first(lambda: self._files.commit(job.step, job.pin, job.extra, tensors))
        except (OSError, RuntimeError, CheckpointException) as error:
            with contextlib.suppress(OSError, RuntimeError):
                ranks.on_first(self._files.remove_partials)
            raise _SaveError(cause_of(error)) from error

    def _problem_of(self, path: Path) -> str | None:
        """The same on all ranks, which share the work."""
        ranks = self._ranks
        problems = ranks.on_all(lambda: problem_of(path, rank=ranks.rank, ranks=ranks.size))
        return next((p for p in problems if p is not None), None)

    def _phase(self, step: int, phase: str) -> None:
        if self._on_phase is not None:
            self._on_phase(step, phase)

    def _warn_once(self, message: str) -> None:
        if self._ranks.rank == 0:
            self.warn(message)
