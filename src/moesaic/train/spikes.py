"""Skipping steps whose gradient is an outlier: one bad batch should cost one step, not the run."""

import math
from collections import deque
from collections.abc import Mapping
from statistics import median

WINDOW = 64  # gradient norms remembered
ENOUGH = 16  # below this many there is no saying what is usual: norms fall steeply in the first steps


class SpikeGuard:
    """Compares each gradient norm with the median of the last 64."""

    def __init__(self, factor: float) -> None:
        """`factor`: largest admitted multiple of the median; 0 refuses only what is not finite."""
        self.factor = factor
        self._norms: deque[float] = deque(maxlen=WINDOW)

    def admit(self, norm: float) -> bool:
        """Whether the step may be taken; remembers `norm` (the global norm before clipping).

        A refused norm is remembered too: if norms stay high, the median follows and training goes on, where a
        guard that forgets them would refuse for ever.
        """
        if not math.isfinite(norm):
            return False
        usual = median(self._norms) if self.factor and len(self._norms) >= ENOUGH else math.inf
        self._norms.append(norm)
        return usual == math.inf or norm <= self.factor * usual

    def state_dict(self) -> dict[str, list[float]]:
        """What a checkpoint must hold; survives JSON exactly."""
        return {"norms": list(self._norms)}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        """Continue from `state_dict()`."""
        self._norms = deque(state["norms"], maxlen=WINDOW)
