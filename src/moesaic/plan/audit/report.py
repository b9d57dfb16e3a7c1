"""Verdicts as a sheet."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from moesaic.plan.audit.verdict import NEARLY, TOLERANCE, Verdict
from moesaic.plan.sheet import Sheet, Table, Value

ORDER = ("ok", "tension", "loose", "garbled", "wrong", "impossible", "not checkable")
WORST_FIRST = ("impossible", "wrong", "garbled", "loose", "tension", "not checkable", "ok")


def sheet(verdicts: Sequence[Verdict], title: str) -> Sheet:
    """Counts, one row per claim, the slips, every reading, and where an expected verdict differs."""
    out = Sheet(title)
    counts = Counter(v.verdict for v in verdicts)
    section = "Verdicts"
    out.add(section, "claims", "claims", len(verdicts), "", "rows of the file")
    for name in ORDER:
        formula = f"claims whose first rule that applies says '{name}'"
        out.add(section, f"{name.replace(' ', '_')}_claims", name, counts[name], "", formula)
    formula = "the most that rounding to two digits can change"
    out.add(section, "tolerance_share", "tolerance", TOLERANCE, "share", formula)
    out.add(section, "nearly_share", "nearly (loose)", NEARLY, "share", "three tolerances")
    out.table("verdicts", "Claims", [_row(v) for v in verdicts])
    slips = [v for v in verdicts if v.verdict == "garbled"]
    if slips:
        out.table("slips", "Slips", [_slip(v) for v in slips])
    readings = [
        {"id": v.claim.id, "reading": c.name, "expression": c.expression, "computed": c.value,
         "unit": c.unit, "holds": c.holds}
        for v in verdicts for c in v.computed
    ]  # fmt: skip
    expected = [v for v in verdicts if v.claim.expected]
    if expected:
        same = [v for v in expected if v.claim.expected == v.verdict]
        out.add(section, "agreeing_claims", "agree with the expected verdict", len(same), f"of {len(expected)}",
                "computed verdict = expected verdict")  # fmt: skip
        out.table("differences", "Where the computed verdict differs from the expected one", [
            {"id": v.claim.id, "claim": v.claim.text, "expected": v.claim.expected, "verdict": v.label,
             "why": v.claim.differs or "not argued"}
            for v in expected if v.claim.expected != v.verdict
        ])  # fmt: skip
    if readings:
        out.table("readings", "Readings", readings)
    if borrowed := sorted({n for v in verdicts for n in v.claim.borrowed}):
        out.note(f"taken from the recipe and the device list, not from the file: {', '.join(borrowed)}")
    return out


def brief(full: Sheet) -> Sheet:
    """The sheet as a terminal shows it: slips and what is wrong first, fewer columns and no table of readings."""
    rows = next(t.rows for t in full.tables if t.key == "verdicts")
    judged = any(row["expected"] for row in rows)
    short = [
        {"id": row["id"], "claim": row["claim"], "verdict": row["label"]}
        | ({"expected": row["expected"]} if judged else {})
        | {
            "computed": _computed(row),
            "corrected": "; ".join(str(row[k]) for k in ("corrected", "note") if row[k]) or None,
        }
        for row in sorted(rows, key=lambda row: WORST_FIRST.index(str(row["verdict"])))
    ]
    kept = {t.key: t for t in full.tables if t.key != "readings"}
    del kept["verdicts"]  # it goes to the end
    claims = Table("verdicts", "Claims, the worst first", short)
    return replace(full, tables=[*kept.values(), claims])


def _computed(row: Mapping[str, Value]) -> str | None:
    """Values with the claim's unit; divisors have none."""
    unit = "" if row["kind"] == "divides" else row["unit"] or ""
    return f"{row['computed']} {unit}".strip() if row["computed"] else None


def _row(v: Verdict) -> dict[str, str | float | None]:
    claimed = None
    if v.claim.claimed is not None:
        low, high = v.claim.claimed
        claimed = f"{low:.10g}" if low == high else f"{low:.10g} to {high:.10g}"
    values = [f"{c.value:.4g}" for c in v.computed if c.value is not None]
    return {
        "id": v.claim.id,
        "claim": v.claim.text,
        "kind": v.claim.kind,
        "verdict": v.verdict,
        "label": v.label,
        "slip": v.slip or None,
        "factor": v.factor,
        "claimed": claimed,
        "computed": ", ".join(dict.fromkeys(values)) or None,
        "unit": v.claim.unit or None,
        "corrected": v.corrected or None,
        "nearest_count": v.nearest,
        "note": v.note or None,
        "expected": v.claim.expected or None,
        "expected_note": v.claim.note or None,
    }


def _slip(v: Verdict) -> dict[str, str | float | None]:
    return {"id": v.claim.id, "claim": v.claim.text, "slip": v.slip, "factor": v.factor, "corrected": v.corrected}
