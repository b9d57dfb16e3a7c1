"""How patient the supervisor is."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from moesaic.errors import MoesaicError

HANG_AT_LEAST_S = 60.0
HANG_STEPS = 10.0  # times the median step


@dataclass(frozen=True)
class Limits:
    """Bounds on restarts and waiting. Times in seconds."""

    restarts: int = 5
    """Restarts within `window` without a new committed checkpoint; one that is committed sets the count to zero."""
    window: float = 3600.0
    """How long a restart counts."""
    first_wait: float = 1.0
    """Wait before the second restart without progress; doubles with each further one. The first comes at once."""
    longest_wait: float = 60.0
    """Where the doubling ends."""
    hang: float | None = None
    """A rank inside a step without a sign of life for so long hangs; None: 10 median steps, at least 60 s."""
    idle: float = 900.0
    """The same outside steps: start, data, evaluation, saving."""
    grace: float = 1.0
    """After a rank died, the others may say what they met for so long before they are ended."""
    stop: float = 300.0
    """After SIGTERM or Ctrl-C, ranks may take so long for the checkpoint."""

    def __post_init__(self) -> None:
        """Raises MoesaicError for a limit that would end every run at once."""
        for name in ("window", "longest_wait", "hang", "idle", "stop"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise MoesaicError(f"{name} = {value:g} s: give a time above 0")
        for name in ("restarts", "first_wait", "grace"):
            if getattr(self, name) < 0:
                raise MoesaicError(f"{name} = {getattr(self, name):g}: give 0 or more")

    def hang_after(self, steps: Sequence[float]) -> float:
        """Seconds without a sign of life that make a hang, given how long recent steps took."""
        if self.hang is not None:
            return self.hang
        return max(HANG_AT_LEAST_S, HANG_STEPS * median(steps)) if steps else HANG_AT_LEAST_S


class Budget:
    """Counts restarts since the last progress."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._times: list[float] = []
        self._progress = -1

    def admit(self, now: float, progress: int) -> float | None:
        """Seconds to wait before the restart after a failure at `now`, or None: the budget is spent.

        `progress` is the step of the newest committed checkpoint, -1 without one.
        """
        if progress > self._progress:
            self._times.clear()
            self._progress = progress
        self._times = [t for t in self._times if now - t < self.limits.window]
        if len(self._times) >= self.limits.restarts:
            return None
        self._times.append(now)
        earlier = len(self._times) - 1
        return 0.0 if not earlier else min(self.limits.first_wait * 2.0 ** (earlier - 1), self.limits.longest_wait)
