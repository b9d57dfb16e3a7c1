"""A file with one line of JSON for each step, for looking at later."""

import json
import logging
from pathlib import Path
from types import TracebackType

from moesaic.errors import ServeError
from moesaic.serve.record import StepRecord


class StepTrace:
    """An observer of an engine. A context manager: leaving writes what is still in memory."""

    def __init__(self, path: Path) -> None:
        """Raises ServeError for a file that cannot be written."""
        try:
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise ServeError(f"cannot write {path}: {error.strerror}; choose another --trace") from error
        self._path, self._fine = path, True

    def __enter__(self) -> "StepTrace":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError as problem:
            self._give_up(problem)

    def __call__(self, record: StepRecord) -> None:
        """Add a step. A disk that is full ends the trace, not the engine."""
        if self._fine:
            try:
                self._file.write(json.dumps(vars(record), separators=(",", ":")) + "\n")
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._fine = False
        logging.getLogger("moesaic.serve").warning("%s: %s; the trace ends here", self._path, error.strerror)
