"""Random true claims with planted slips: slips are found with their factor, true claims are not blamed."""

from collections import Counter

from planted_claims import found, planted

from moesaic.plan.audit import audit


def test_slips_are_found_and_true_claims_are_left_alone() -> None:
    rows = planted(seed=4, count=1000)
    verdicts = audit({"claims": [r.claim for r in rows]})
    count: Counter[str] = Counter()
    for row, verdict in zip(rows, verdicts, strict=True):
        right = found(row, verdict.verdict, verdict.slip, verdict.factor) if row.slip else verdict.verdict == "ok"
        count[f"{'slips' if row.slip else 'true'} {'right' if right else 'wrong'}"] += 1
    slips, true = count["slips right"] + count["slips wrong"], count["true right"] + count["true wrong"]
    assert min(slips, true) > 400
    assert count["slips right"] / slips >= 0.95
    assert count["true wrong"] / true <= 0.02


def test_every_listed_slip_is_planted_and_the_draw_repeats() -> None:
    rows = planted(seed=4, count=1000)
    kinds = Counter(r.slip for r in rows)
    assert set(kinds) == {"", "x10", "x100", "x1000", "cents/dollars", "TFLOP/GFLOP", "swapped terms"}
    assert min(kinds.values()) >= 10
    assert {r.claim["kind"] for r in rows} == {"value", "divides", "ratio", "bound"}
    assert rows == planted(seed=4, count=1000)
