"""The rules that turn a claim and its computed readings into a verdict, in the order in which they are asked."""

import math
import re
from collections.abc import Sequence

from moesaic.plan.audit.claims import Claim, Reading
from moesaic.plan.audit.divisors import divides, nearest_count
from moesaic.plan.audit.repair import SWAPPED, Repair, repair, repair_bound, slips
from moesaic.plan.audit.units import PARTS, agree, split, unit_of
from moesaic.plan.audit.verdict import EXACT, NEARLY, TOLERANCE, Computed, Verdict

_UTILISATION = re.compile(r"utili[sz]ation|\b(mfu|hfu|mbu)\b|of( \w+)* peak", re.IGNORECASE)
_RELATIVE = re.compile(r"\b(ratio|relative|times|x)\b|gain|improve|increase|speed|higher|lower|change", re.IGNORECASE)
_IN_TEXT = re.compile(
    r"\d ?(%|percent)( of( \w+)* peak| (mfu|hfu|mbu|utili[sz]ation))"
    r"|\b(mfu|hfu|mbu|utili[sz]ation)( of| is| was|:| =| reaches)? ?\d+(\.\d+)?(?!\d|\.\d| ?(x\b|times))",
    re.IGNORECASE,
)
_UPPER = re.compile(
    r"<|≤|\b(under|below|(?<!no )(?<!not )(less|fewer|lower|smaller) than|at most|up to"
    r"|(no|not) (more|greater|larger|higher) than|within|maximum|fits?)\b",
    re.I,
)
_LOWER = re.compile(
    r">|≥|\b((?<!no )(?<!not )(more|greater|larger|higher) than|over|above|at least|exceeds?"
    r"|(no|not) (less|fewer|lower|smaller) than|minimum|beyond)\b",
    re.I,
)


def judge(claim: Claim) -> Verdict:
    """The verdict on one claim."""
    if (over := _impossible(claim)) is not None:
        return over
    if not claim.readings or claim.claimed is None:
        return Verdict(claim, "not checkable", note="no expression")
    unit = _unit(claim)
    if claim.kind == "divides":
        return divides(claim, unit)
    computed = [_computed(claim, r, unit) for r in claim.readings]
    if all(c.value is None for c in computed):
        right = unit_of(claim.readings[0].result.quantity)
        note = f"the claim is in {claim.unit or 'pure numbers'}, the expression gives {right}"
        meant = _prefixed(float(claim.readings[0].result.quantity.magnitude), right)
        return Verdict(claim, "garbled", computed, "unit", corrected=meant, note=note)
    remark = ""
    if claim.kind == "bound" and not _direction(claim)[1]:
        remark = "direction not stated: taken as an upper bound"
    if any(c.holds for c in computed):
        broken = [c.name for c in computed if not c.holds]
        if not broken:
            return Verdict(claim, "ok", computed, note=remark)
        held = "; ".join(c.name for c in computed if c.holds)
        return Verdict(claim, "tension", computed, note=f"holds for {held} -- not for {'; '.join(broken)}")
    return _failed(claim, computed, unit, remark)


def _unit(claim: Claim) -> int:
    """Which of the unit's meanings the readings speak of; the first when none fits."""
    for i, unit in enumerate(claim.units):
        if any(r.result.bare or agree(r.result.quantity, unit) for r in claim.readings):
            return i
    return 0


def _computed(claim: Claim, reading: Reading, unit: int) -> Computed:
    value = _value(claim, reading, unit)
    shown = claim.unit if value is not None else unit_of(reading.result.quantity)
    return Computed(reading.name, reading.expression, value, shown, value is not None and _holds(claim, value))


def _value(claim: Claim, reading: Reading, index: int) -> float | None:
    """A reading in the claim's unit; None for another dimension.

    An expression without any unit is taken in the claim's unit or in its base unit (FLOP for GFLOP), the nearer one;
    shares stay shares: 0.34 is 34 %.
    """
    unit, result = claim.units[index], reading.result
    number, scale = float(result.quantity.magnitude), float(unit.magnitude)
    if result.bare:
        if scale == 1 or (scale < 1 and split(unit) == ({}, {})):
            return number / scale
        return min((number, number / scale), key=lambda v: _apart(claim, v))
    return number / scale if agree(result.quantity, unit) else None


def _apart(claim: Claim, value: float) -> float:
    """Distance in orders of magnitude."""
    said = max(map(abs, claim.claimed or (0.0,)))
    return abs(math.log(said) - math.log(abs(value))) if said and value else math.inf


def _miss(claim: Claim, value: float) -> float:
    return miss(claim.claimed or (math.nan, math.nan), value)


def miss(claimed: tuple[float, float], computed: float) -> float:
    """How far the claimed range is from the computed value, as a share of the latter; 0 inside the range."""
    low, high = claimed
    if low <= computed <= high:
        return 0.0
    end = low if computed < low else high
    return abs(end - computed) / abs(computed) if computed else math.inf


def _tolerance(claim: Claim) -> float:
    return TOLERANCE if claim.tolerance is None else claim.tolerance


def _holds(claim: Claim, value: float) -> bool:
    if claim.kind != "bound":
        return _miss(claim, value) <= _tolerance(claim) + EXACT
    assert claim.claimed is not None
    slack = EXACT + (claim.tolerance or 0)  # a bound is not rounded in its favour
    if _direction(claim)[0]:
        return value <= claim.claimed[1] + slack * abs(claim.claimed[1])
    return value >= claim.claimed[0] - slack * abs(claim.claimed[0])


def _direction(claim: Claim) -> tuple[bool, bool]:
    """Whether a bound is an upper one, and whether the file says so (by `bound`, a sign, or words of the text)."""
    if claim.bound:
        return claim.bound == "upper", True
    upper, lower = _UPPER.search(claim.text), _LOWER.search(claim.text)
    if lower and not (upper and upper.start() < lower.start()):
        return False, True
    return True, upper is not None


def _failed(claim: Claim, computed: Sequence[Computed], unit: int, remark: str) -> Verdict:
    """Garbled, loose or wrong: no reading holds."""
    assert claim.claimed is not None
    usable = [c for c in computed if c.value is not None]
    values = [c.value for c in usable if c.value is not None]
    nearest = min(range(len(values)), key=lambda i: _miss(claim, values[i]))
    quantity = claim.units[unit]
    money, flop = "[money]" in quantity.dimensionality, "[flop]" in quantity.dimensionality
    quotient = any(r.result.above is not None for r in claim.readings)
    swappable = claim.kind == "ratio" or split(quantity) == ({}, {}) or quotient
    known = slips(claim.unit, float(quantity.magnitude), money, flop, swappable)
    if claim.kind == "bound":
        upper = _direction(claim)[0]
        found = repair_bound(claim.claimed[1 if upper else 0], values, upper, known)
    else:
        found = repair(claim.claimed, values, known, miss, _tolerance(claim))
    if found is not None:
        return _garbled(claim, computed, values, found, remark)
    corrected = _text(values[nearest], claim.unit)
    if (shared := _shared(claim, unit)) is not None:
        return _parts(claim, computed, values, *shared)
    near = _miss(claim, values[nearest])
    note = "; ".join(filter(None, [remark, f"{near:.1%} off" if near < 10 else ""]))
    return Verdict(claim, "loose" if near <= NEARLY else "wrong", computed, corrected=corrected, note=note)


def _garbled(
    claim: Claim, computed: Sequence[Computed], values: Sequence[float], found: Repair, remark: str
) -> Verdict:
    assert claim.claimed is not None
    slip, unit = found.slip, claim.unit
    value = slip.undo(claim.claimed[0]) if claim.kind == "bound" else values[found.index]
    if slip.says:  # 0.56 TFLOP is 560 GFLOP
        value, unit = value / slip.undo(1.0), unit.replace(slip.says, slip.meant)
    if slip.name == SWAPPED:
        return Verdict(claim, "garbled", computed, "swapped", corrected=_text(value, unit), note="the inverse holds")
    note = "; ".join(filter(None, [remark, f"{slip.name} repairs it"]))
    return Verdict(claim, "garbled", computed, slip.name, slip.factor, _text(value, unit), note)


def _shared(claim: Claim, unit: int) -> tuple[float, str] | None:
    """The whole of which the claim is one part, in the claim's unit, and what the parts are called.

    Stated as `whole`, or seen: a claim per node (rack, cluster, stage) whose reading divides something by nodes.
    """
    scale = float(claim.units[unit].magnitude)
    if claim.whole is not None:
        return float(claim.whole.magnitude) / scale, claim.part
    counted = split(claim.units[unit])[1]
    for part in (p for p in PARTS if counted.get(p) == -1):
        for above in (r.result.above for r in claim.readings):
            if above is not None and part not in split(above)[1]:
                return float(above.magnitude) / scale, part.strip("[]")
    return None


def _parts(claim: Claim, computed: Sequence[Computed], values: Sequence[float], whole: float, part: str) -> Verdict:
    """A share of a whole that comes in equal parts: what counts is whether it means the same number of parts."""
    assert claim.claimed is not None
    middle = sum(claim.claimed) / 2
    count = max(1, nearest_count(whole / middle)) if middle else 1
    meant = sorted({nearest_count(whole / v) for v in values if v})
    right = " or ".join(f"{_text(whole / n, claim.unit)} ({n} {part}s)" for n in reversed(meant) if n)
    note = f"{whole:.4g}/{middle:.4g} = {whole / middle:.2f}: nearest {part} count {count}" if middle else ""
    return Verdict(claim, "loose" if count in meant else "wrong", computed, corrected=right, note=note, nearest=count)


def _impossible(claim: Claim) -> Verdict | None:
    """A share of peak above 100 % cannot be; a slip may explain it."""
    named = _UTILISATION.search(f"{claim.quantity} {claim.unit}") or _IN_TEXT.search(claim.text)
    if claim.claimed is None or not named or _RELATIVE.search(f"{claim.quantity} {claim.unit}"):
        return None
    unit = claim.units[0]
    share = claim.claimed[1] * float(unit.magnitude)
    bounded = claim.kind == "bound" and _direction(claim)[0]  # "at most 120 %" may well be
    if split(unit) != ({}, {}) or share <= 1 + EXACT or bounded:
        return None
    note = f"{share:.0%} of peak: impossible"
    if claim.readings and claim.kind in ("value", "ratio"):
        computed = [_computed(claim, r, 0) for r in claim.readings]
        scale = float(unit.magnitude)
        possible = [c for c in computed if c.value is not None and c.value * scale <= 1 + EXACT]
        if possible and not any(c.holds for c in computed):
            found = _failed(claim, possible, 0, note)
            if found.verdict == "garbled":
                return found
            return Verdict(claim, "impossible", computed, corrected=found.corrected, note=note)
        return Verdict(claim, "impossible", computed, note=note)
    return Verdict(claim, "impossible", note=note)


def _text(value: float, unit: str) -> str:
    """`560 GFLOP/token`, `$63M`-style units left as they are."""
    number = f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
    return f"{number} {unit}".strip()


def _prefixed(value: float, unit: str) -> str:
    """A value of a base unit with the prefix that people use: 557.8 GFLOP/token."""
    if unit.startswith(("FLOP", "byte", "J")):
        for prefix, scale in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if scale <= abs(value) < 1000 * scale:
                return f"{value / scale:.4g} {prefix}{unit}"
    return f"{value:.4g} {unit}"
