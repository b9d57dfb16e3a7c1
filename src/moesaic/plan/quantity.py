"""Numbers as people write and read them: `13T`, `60M`, 1.83 T; durations (`2h`) and lengths in tokens (`32k`)."""

import math
import re
from decimal import Decimal

from moesaic.errors import PlanError

_SUFFIX: dict[str, Decimal | int] = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
_BINARY: dict[str, Decimal | int] = {"": 1, "k": 2**10, "K": 2**10, "M": 2**20}
_SECONDS: dict[str, Decimal | int] = {"ms": Decimal("0.001"), "s": 1, "min": 60, "h": 3600, "d": 86400}
# Groups of thousands, or digits that single underscores part: `24,96` is a slip, not 2496.
_DIGITS = r"((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+(?:_[0-9]+)*)(?:\.[0-9]*)?"
_COUNT = re.compile(rf"\s*{_DIGITS}(?:[eE][+-]?[0-9]{{1,3}})?)\s*([kKMGBT]?)\s*")
_DURATION = re.compile(rf"\s*{_DIGITS})\s*(ms|s|min|h|d)\s*")
_CONTEXT = re.compile(rf"\s*{_DIGITS})\s*([kKM]?)\s*")
_LONGEST_CONTEXT = 2**40  # tokens; what is larger is a slip


def parse_count(text: str, name: str) -> float:
    """A positive count such as `13T`, `60M`, `24_960` or `2.15e25`. `name` is what errors call it.

    Raises PlanError.
    """
    value = _product(_COUNT.fullmatch(text), _SUFFIX)
    if not (value > 0 and math.isfinite(value)):
        raise PlanError(f"{name} {_quoted(text)}: give a positive number, for example 60M, 13T or 24960")
    return value


def parse_duration(text: str, name: str, *, zero: bool = False) -> float:
    """Seconds of `600s`, `10min`, `2h`, `3d` or `250ms`, with its unit. With `zero`, `0s` too. Raises PlanError."""
    value = _product(_DURATION.fullmatch(text), _SECONDS)
    if not ((value > 0 or (zero and value == 0)) and math.isfinite(value)):
        raise PlanError(f"{name} {_quoted(text)}: give a time with its unit, for example 600s, 10min, 2h or 3d")
    return value


def parse_context(text: str, name: str) -> int:
    """Tokens of a context: `8k` is 8,192 and `32k` 32,768, as lengths are named; `8192` is itself. Raises PlanError."""
    value = _product(_CONTEXT.fullmatch(text), _BINARY)
    if not (1 <= value <= _LONGEST_CONTEXT and value == int(value)):
        raise PlanError(
            f"{name} {_quoted(text)}: give a whole number of tokens, for example 8192, 8k or 32k (k = 1024)"
        )
    return int(value)


def human(value: float, digits: int = 4) -> str:
    """A number with a suffix, to `digits` significant digits: 1.833T, 278.9B, 61.44k, 0.25."""
    if not math.isfinite(value):
        return f"{value}"
    shown = float(f"{value:.{digits}g}")  # first, so that 999,999 becomes 1M and not 1000k
    for suffix, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if scale <= abs(shown) < 1e15:
            return f"{shown / scale:.{digits}g}{suffix}"
    return f"{shown:.{digits}g}"


def human_time(seconds: float) -> str:
    """A length of time in the unit that suits it, to three digits: 12.8 s, 10 min, 2.03 h, 95 d."""
    for unit in ("d", "h", "min", "s"):
        size = float(_SECONDS[unit])
        if seconds >= (2 if unit == "d" else 1) * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1000:.3g} ms"


def printable(words: str) -> str:
    """Without what moves a terminal's cursor: a control character becomes a space."""
    return "".join(c if c.isprintable() else " " for c in words)


def _product(found: re.Match[str] | None, units: dict[str, Decimal | int]) -> float:
    """Number times unit, exact before it is rounded once; NaN when nothing was found."""
    if found is None:
        return math.nan
    return float(Decimal(found[1].replace("_", "").replace(",", "")) * units[found[2]])


def _quoted(text: str) -> str:
    """What was given, on one line of bearable length."""
    line = printable(text)
    return line if len(line) <= 40 else f"{line[:40]}..."
