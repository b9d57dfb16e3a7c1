"""Numbers as people write and read them: `13T`, `60M`, 1.83 T."""

import math
import re

from moesaic.errors import PlanError

_SUFFIX = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_NUMBER = re.compile(r"\s*([0-9][0-9_,]*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)\s*([kKMGBT]?)\s*")


def parse_count(text: str, name: str) -> float:
    """A positive count such as `13T`, `60M`, `24_960` or `2.15e25`. `name` is what errors call it.

    Raises PlanError.
    """
    found = _NUMBER.fullmatch(text)
    value = float(found[1].replace("_", "").replace(",", "")) * _SUFFIX[found[2]] if found else math.nan
    if not (value > 0 and math.isfinite(value)):
        raise PlanError(f"{name} {text}: give a positive number, for example 60M, 13T or 24960")
    return value


def human(value: float, digits: int = 4) -> str:
    """A number with a suffix, to `digits` significant digits: 1.833T, 278.9B, 61.44k, 0.25."""
    size = abs(value)
    for suffix, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if scale <= size < 1e15:
            return f"{value / scale:.{digits}g}{suffix}"
    return f"{value:.{digits}g}"
