"""Lengths of time as people write and read them: `600s`, `10min`, `2h`."""

import math
import re

from moesaic.errors import PlanError

_SECONDS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?)\s*(ms|s|min|h|d)\s*")


def parse_seconds(text: str, name: str) -> float:
    """Seconds in `600s`, `10min`, `2h`, `1.5d` or `50ms`; zero is allowed. `name` is what errors call it.

    Raises PlanError, also for a number without a unit.
    """
    found = _DURATION.fullmatch(text)
    if not found or not math.isfinite(float(found[1])):
        raise PlanError(f"{name} {text}: give a length of time with its unit, for example 600s, 10min or 2h")
    return float(found[1]) * _SECONDS[found[2]]


def human_time(seconds: float) -> str:
    """A length of time in the unit that suits it, to three digits: 12.8 s, 10 min, 2.03 h, 95 d."""
    for unit, size in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= (2 if unit == "d" else 1) * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1000:.3g} ms"
