"""`metrics.jsonl`: one line of JSON per step and event, whole or absent, no step twice."""

import errno
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from moesaic.durable import write_durably
from moesaic.errors import CheckpointError
from moesaic.train.goodput import place, resume_event
from moesaic.train.sinks import Sink

LOOKS = ("evaluation", "loss_by_position", "sample")
_LOGGER = logging.getLogger(__name__)


class MetricsLog:
    """Appends lines to a file and hands them to sinks. A full disk delays lines, it tears and loses none.

    A context manager: leaving it closes the sinks.
    """

    def __init__(
        self,
        path: Path | None,
        sinks: Sequence[Sink] = (),
        warn: Callable[[str], None] = _LOGGER.warning,
    ) -> None:
        """`sinks`: opened with `open_sink`; the log closes them. Without a path nothing is kept."""
        self.path, self.warn = path, warn
        self._sinks = list(sinks)
        self._waiting = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line; what is not finite is written as null, since JSON has no word for it."""
        if self.path is None:
            return
        self._waiting += json.dumps(_finite(line)).encode() + b"\n"
        self._try_to_append()
        for sink in list(self._sinks):
            try:
                sink.log(line)
            except Exception as error:  # a viewer that fails must never end a training run
                self._sinks.remove(sink)
                self.warn(f"{type(sink).__name__} failed and is off from now on: {error}")

    def flush(self) -> bool:
        """Try again to write what a full disk held back; whether nothing is waiting."""
        self._try_to_append()
        return not self._waiting

    def close(self) -> None:
        """Close the sinks, and write what a full disk held back."""
        for sink in self._sinks:
            sink.close()
        self._sinks = []
        self._try_to_append()

    def truncate_after(self, step: int, looks: bool = True) -> dict[str, Any]:
        """Drop the lines of later steps, and a last line cut short: what a resumed run will write again.

        Without `looks` also what was seen of the model after that very step: evaluations, curves, samples.

        Returns what the interruption cost, for the line of the resume (see `goodput.resume_event`).
        """
        lines = read_metrics(self.path) if self.path is not None and self.path.exists() else []
        if lines and self.path is not None:
            kept = [line for line in lines if place(line) <= step]
            if not looks:
                kept = [line for line in kept if place(line) < step or line.get("event") not in LOOKS]
            write_durably(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        return resume_event(lines, step, datetime.now(UTC))

    def _try_to_append(self) -> None:
        if not self._waiting or self.path is None:
            return
        try:
            with self.path.open("ab", buffering=0) as file:
                before = os.fstat(file.fileno()).st_size
                # One system call: a kill cannot tear the line, but a disk that fills up may take a part.
                if file.write(self._waiting) != len(self._waiting):
                    file.truncate(before)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self.warn(f"{self.path}: {error.strerror}; its lines wait in memory until there is space")
        else:
            self._waiting = b""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics file but a last one cut short. Raises CheckpointError for damage elsewhere."""
    lines = path.read_bytes().split(b"\n")
    out: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is torn or empty
        try:
            out.append(json.loads(line))
        except ValueError as error:
            raise CheckpointError(f"{path}: line {number} is not JSON; delete that line") from error
    return out


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
