"""Ending cleanly: SIGTERM and Ctrl-C ask for a stop after the current step; a second one stops at once."""

import signal
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """Context manager that turns SIGTERM and SIGINT into a flag. Only in the main thread, as Python demands."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._catch)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
