"""An axis: where a value stands, and the round values that are written beside it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDE = 100  # a ratio of largest to smallest above this asks for a logarithmic axis


@dataclass(frozen=True)
class Axis:
    """Values `low` .. `high` drawn from `begin` to `end`, evenly or by their logarithm."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """The coordinate of `value`; with a logarithmic axis it must be positive."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self, wanted: int = 5) -> list[float]:
        """About `wanted` round values within the axis."""
        return log_ticks(self.low, self.high, wanted) if self.log else ticks(self.low, self.high, wanted)


def axis_of(values: Sequence[float], begin: float, end: float, zero: bool = False, log: bool = False) -> Axis:
    """An axis around `values`. `zero`: it starts at 0. `log`: logarithmic if they span more than a factor of 100."""
    low, high = min(values), max(values)
    if log and low > 0 and high / low > WIDE:
        return Axis(low / 1.05, high * 1.05, begin, end, log=True)
    if zero and low > 0:
        low = 0.0
    if high <= low:
        high = low + (abs(low) or 1.0)
    return Axis(low, high + (high - low) * 0.02, begin, end)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values that divide [low, high] into about `wanted` parts."""
    raw = (high - low) / wanted
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(m * scale for m in (1, 2, 5, 10) if m * scale >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Powers of ten in [low, high]: some of them when there are many, with 2 and 5 between when there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, -(-(last - first) // wanted))
    between = (1, 2, 5) if math.log10(high / low) < wanted - 2 else (1,)
    values = [float(m) * 10.0**e for e in range(first, last + 1, stride) for m in between]
    return [v for v in values if low <= v <= high]
