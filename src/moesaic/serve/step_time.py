"""How long a step will take, learned from the steps before it; what the latency cap is held against.

A step costs something once, for each position (products), for each expert that is touched (its weights are read), for
each position of context (keys and values are read) and for each pair of query and key. The five prices are fitted to
what was measured, the recent weighing more, relative errors counting; no price is below zero.

Pure Python on five numbers: it runs beside every step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

MEMORY = 0.99  # weight of a step among those after it: about the last hundred count
SWEEPS = 3
QUANTILE, RATE = 0.95, 0.02  # of actual over predicted, which `bound` multiplies by
MOST_HEADROOM = 3.0


@dataclass(frozen=True)
class Load:
    """What a step has to do: new positions, context read and query-key pairs, summed over requests."""

    positions: int = 0
    context: int = 0
    pairs: float = 0.0

    def with_work(self, start: int, width: int) -> "Load":
        """And `width` more positions of a request that has `start` already."""
        return Load(
            self.positions + width, self.context + start + width, self.pairs + width * (start + (width + 1) / 2)
        )


class StepTime:
    """Online non-negative least squares by coordinate descent, from where the last step left it."""

    def __init__(self, n_experts: int = 1, top_k: int = 1) -> None:
        """`n_experts`, `top_k`: of a layer; one expert is read whatever comes."""
        self._idle = 1 - top_k / n_experts  # share of experts that a token leaves alone
        self._a = [[0.0] * 5 for _ in range(5)]
        self._b = [0.0] * 5
        self.prices = [0.0] * 5
        """Seconds for a step, a position, the experts of a layer, a position of context, a pair."""
        self.headroom = 1.2
        """Actual over predicted that 95 % of steps stay under."""
        self.seen = 0

    def touched(self, positions: int) -> float:
        """Share of a layer's experts that so many positions are expected to touch, if all are equally likely."""
        return 1 - self._idle**positions

    def predict(self, load: Load) -> float | None:
        """Seconds, or None before there is anything to learn from."""
        if not self.seen:
            return None
        return sum(p * x for p, x in zip(self.prices, self._features(load), strict=True))

    def bound(self, load: Load) -> float | None:
        """Seconds that 95 % of such steps stay under."""
        seconds = self.predict(load)
        return None if seconds is None else seconds * self.headroom

    def learn(self, load: Load, seconds: float) -> None:
        """Note what a step took."""
        if seconds <= 0:
            return
        before = self.predict(load)
        if before:
            over = seconds / before > self.headroom
            self.headroom += RATE * (QUANTILE if over else QUANTILE - 1)
            self.headroom = min(max(self.headroom, 1.0), MOST_HEADROOM)
        x = [value / seconds for value in self._features(load)]
        for i in range(5):
            row = self._a[i]
            self._b[i] = MEMORY * self._b[i] + x[i]
            for j in range(5):
                row[j] = MEMORY * row[j] + x[i] * x[j]
        self.seen += 1
        for _ in range(SWEEPS):
            self._descend()

    def _descend(self) -> None:
        for i, row in enumerate(self._a):
            if row[i] > 0:
                rest = sum(a * p for a, p in zip(row, self.prices, strict=True)) - row[i] * self.prices[i]
                self.prices[i] = max(0.0, (self._b[i] - rest) / row[i])

    def _features(self, load: Load) -> Sequence[float]:
        return (1.0, load.positions, self.touched(load.positions), load.context, load.pairs)
