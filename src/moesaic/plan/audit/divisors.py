"""Claims that a count divides another, or is divided by it: `16 divides 120`."""

import math

from moesaic.plan.audit.claims import Claim
from moesaic.plan.audit.verdict import EXACT, NEARLY, Computed, Verdict


def divides(claim: Claim, unit: int) -> Verdict:
    """Whether the claimed count is a multiple or a divisor of each computed count. Scale slips are not looked for:
    ten times any count divides at least as well."""
    assert claim.claimed is not None
    count = claim.claimed[0] * float(claim.units[unit].magnitude)
    computed, feasible = [], []
    for reading in claim.readings:
        other = float(reading.result.quantity.magnitude)
        above = reading.result.above
        if above is not None and other > 0 and not _whole(other):  # 120 / 16 written out: it is 16 that must divide
            holds, other = False, float(above.magnitude) / other
        else:
            holds = count > 0 and other > 0 and (_whole(count / other) or _whole(other / count))
        computed.append(Computed(reading.name, reading.expression, other, "", holds))
        if not holds and other > 0 and count > 0:
            feasible.append(_multiples(count, other))
    held = [c.name for c in computed if c.holds]
    if len(held) == len(computed):
        return Verdict(claim, "ok", computed)
    near = [n for pair in feasible for n in pair]
    corrected = " or ".join(f"{n:,.0f}" for n in dict.fromkeys(near))
    first = next(c for c in computed if not c.holds)
    shown = f"{count:,.10g}/{first.value:,.10g} = {count / first.value:.2f}" if first.value else "no count"
    if held:
        return Verdict(claim, "tension", computed, corrected=corrected, note=f"holds for {'; '.join(held)} -- {shown}")
    nearest = min((n for n in near if n > 0), key=lambda n: abs(n - count), default=None)
    close = nearest is not None and abs(nearest - count) <= NEARLY * count
    word, note = "loose" if close else "wrong", f"{shown}: not whole"
    return Verdict(claim, word, computed, corrected=corrected, note=note, nearest=nearest)


def _whole(value: float) -> bool:
    return value >= 1 - EXACT and abs(value - nearest_count(value)) <= EXACT * value


def nearest_count(value: float) -> int:
    """The whole number next to `value`; 0 for what is not finite."""
    return round(value) if math.isfinite(value) else 0


def _multiples(count: float, other: float) -> list[float]:
    """The counts beside `count` that divide: multiples of a smaller `other`, divisors of a larger one."""
    if not math.isfinite(count / other) or not math.isfinite(other / count):
        return []
    if other <= count:
        return [math.floor(count / other) * other, math.ceil(count / other) * other]
    below = above = int(other // count)
    for _ in range(10_000):  # of a large number the divisors may be far apart
        below += 1 if other % below or below == above else 0
        above -= 1 if above > 1 and other % above else 0
    return [other / n for n in (below, above) if other % n == 0]
