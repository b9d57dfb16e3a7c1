"""The listed slips: what a garbled number may have suffered, and which one explains it best."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Range = tuple[float, float]
CENTS, FLOPS, SWAPPED = "cents/dollars", "TFLOP/GFLOP", "swapped terms"


@dataclass(frozen=True)
class Slip:
    """One slip. `undo` turns the claimed number into the meant one; `factor` is by how much it is off."""

    name: str
    factor: float
    undo: Callable[[float], float]
    says: str = ""  # unit written, and unit meant, where the slip is one of units
    meant: str = ""


def _times(name: str, factor: float, power: int, says: str = "", meant: str = "") -> Slip:
    scale = factor**power
    return Slip(name, factor, lambda v: v * scale, says, meant)


def slips(unit: str, scale: float, money: bool, flop: bool, swappable: bool) -> list[Slip]:
    """The slips that a claim in `unit` can have suffered, the particular ones first.

    `scale`: the unit in base units. `money`, `flop`: what it counts. `swappable`: the number is a quotient, so a/b may
    have become b/a.
    """
    found = []
    if money:
        cent = re.search(r"cents?\b|¢", unit)
        found += [_times(CENTS, 100, 1, cent[0], "$")] if cent else []
        found += [] if cent else [_times(CENTS, 100, -1, "$", "cent")]
    if flop and "TFLOP" in unit:
        found.append(_times(FLOPS, 1000, -1, "TFLOP", "GFLOP"))
    if flop and "GFLOP" in unit:
        found.append(_times(FLOPS, 1000, 1, "GFLOP", "TFLOP"))
    found += [_times(f"x{factor}", factor, power) for factor in (10, 100, 1000) for power in (-1, 1)]
    if swappable:
        found.append(Slip(SWAPPED, 0.0, lambda v: 1 / v))
        if scale != 1:  # 34 % became 294 %, not 1/34 %
            found.append(Slip(SWAPPED, 0.0, lambda v: 1 / (v * scale) / scale))
    return found


@dataclass(frozen=True)
class Repair:
    """A slip that makes the claim hold, and the index of the value that it then agrees with."""

    slip: Slip
    index: int


def repair(claimed: Range, computed: Sequence[float], known: Sequence[Slip], miss: Callable[[Range, float], float],
           tolerance: float) -> Repair | None:  # fmt: skip
    """The slip that leaves the smallest miss, if one leaves less than `tolerance`; of equal ones the first listed."""
    best, least = None, math.inf
    for slip in known:
        if slip.name == SWAPPED and min(map(abs, claimed)) == 0:
            continue
        ends = sorted(slip.undo(v) for v in claimed)
        for i, value in enumerate(computed):
            off = miss((ends[0], ends[-1]), value)
            if off <= tolerance and off < least * (1 - 1e-9) - 1e-12:
                best, least = Repair(slip, i), off
    return best


def repair_bound(claimed: float, computed: Sequence[float], upper: bool, known: Sequence[Slip]) -> Repair | None:
    """The slip that lets a broken bound hold without leaving it so wide that it says nothing.

    A bound broken by less than a third of a slip's factor is not explained by that slip: nearly any bound would be.
    """
    for slip in known:
        for i, value in enumerate(computed):
            if claimed <= 0 or value <= 0:
                continue
            meant = slip.undo(claimed)
            slack = meant / value if upper else value / meant
            if slip.factor and 1 <= slack <= slip.factor / 3 and (meant > claimed) == upper:
                return Repair(slip, i)
    return None
