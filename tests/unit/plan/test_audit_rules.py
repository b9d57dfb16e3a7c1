"""One claim at a time: which rule speaks, in which order, and what a malformed file is told."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.errors import PlanError
from moesaic.plan.audit import audit, sheet_of
from moesaic.plan.audit.verdict import NEARLY, TOLERANCE, Verdict
from moesaic.plan.audit.verdicts import miss


def one(expression: str | list[str] = "", **claim: Any) -> Verdict:
    """The verdict on one claim; `given` and `nouns` go to the file."""
    table = {key: claim.pop(key) for key in ("given", "nouns") if key in claim}
    expressions = [expression] if isinstance(expression, str) else expression
    readings = [{"name": f"r{i}", "expression": e} for i, e in enumerate(expressions) if e]
    (verdict,) = audit({"claims": [{"id": "c", "text": "t", "readings": readings} | claim]} | table)
    return verdict


@pytest.mark.parametrize(
    ("expression", "claim", "label"),
    [
        ("", {}, "not checkable"),
        ("", {"claimed": 5, "unit": "GB"}, "not checkable"),
        ("2 byte * 70B", {"claimed": 140, "unit": "GB"}, "ok"),
        (["2 byte * 70B", "1 byte * 70B"], {"claimed": 140, "unit": "GB"}, "tension"),
        ("2 byte * 70B", {"claimed": 14, "unit": "GB"}, "garbled x10"),
        ("2 byte * 70B", {"claimed": 14000, "unit": "GB"}, "garbled x100"),
        ("2 byte * 70B", {"claimed": 155, "unit": "GB"}, "loose"),
        ("2 byte * 70B", {"claimed": 200, "unit": "GB"}, "wrong"),
        ("2 byte * 70B / (1 s)", {"claimed": 140, "unit": "GB"}, "garbled (unit)"),
        ("6 * 70B * 15e12", {"claimed": 6.3e24, "unit": "FLOP"}, "ok"),
        ("6 * 70B parameters * 15T tokens", {"claimed": 6.3e24, "unit": "FLOP"}, "ok"),
        ("6 * 70B * 15T tokens", {"claimed": 6.3e24, "unit": "FLOP"}, "ok"),
        ("6 * 70B parameters * 15T tokens", {"claimed": 6.3e24, "unit": "FLOPS"}, "garbled (unit)"),
        ("700 W", {"claimed": 700, "unit": "Wh"}, "garbled (unit)"),
        ("60M tokens", {"claimed": 60, "unit": "M sequences"}, "garbled (unit)"),
        ("70B parameters", {"claimed": 140, "unit": "GB"}, "garbled (unit)"),
        ("2*70e9/1e9", {"claimed": 140, "unit": "GB"}, "ok"),  # no units at all: the claim's, or its base
        ("2*70e9", {"claimed": 140, "unit": "GB"}, "ok"),
        ("6*70e9*15e12/(16000*989e12*0.40)", {"claimed": 115, "unit": "days"}, "garbled x10"),
        ("15T tokens / 8B", {"claimed": 1875, "unit": "tokens per parameter"}, "ok"),
        ("6.4M H100 GPU-hours * 700 W", {"claimed": 4.5, "unit": "GWh"}, "ok"),
        ("6 * 8B * 15T tokens", {"claimed": 8330, "unit": "petaflops-days"}, "ok"),
        ("0.34", {"claimed": 34, "unit": "%"}, "ok"),
        ("0.34", {"claimed": 0.34, "unit": "%"}, "garbled x100"),
        ("70B parameters", {"claimed": 70, "unit": "B"}, "ok"),  # billions
        ("312e12 FLOP/s", {"claimed": 312, "unit": "Tflops"}, "ok"),  # a rate here,
        ("312e12 FLOP", {"claimed": 312, "unit": "Tflops"}, "ok"),  # and a count there
        ("$0.02 / 1k tokens", {"claimed": 0.02, "unit": "cents / 1k tokens"}, "garbled x100"),
        ("$0.02 / 1k tokens", {"claimed": 2, "unit": "$ / 1k tokens"}, "garbled x100"),
        ("2 GFLOP/token", {"claimed": 2, "unit": "TFLOP/token"}, "garbled x1000"),
        ("30 B / 120 B", {"claimed": 4, "unit": "x", "kind": "ratio"}, "garbled (swapped)"),
        ("34 %", {"claimed": 294, "unit": "%", "kind": "ratio"}, "garbled (swapped)"),
        ("100 tokens / 4 s", {"claimed": 0.04, "unit": "tokens/s"}, "garbled (swapped)"),
        ("70B parameters", {"claimed": "~70", "unit": "billion parameters"}, "ok"),
        ("4.5 days", {"claimed": [90, 100], "unit": "hours"}, "loose"),
        ("95 hours", {"claimed": [90, 100], "unit": "hours"}, "ok"),
        ("0.43", {"claimed": 430, "unit": "%", "quantity": "MFU"}, "garbled x10"),
        ("43 %", {"claimed": 130, "unit": "%", "quantity": "utilization"}, "impossible"),
        ("130 %", {"claimed": 130, "unit": "% of peak"}, "impossible"),
        ("", {"claimed": 130, "unit": "%", "quantity": "MFU"}, "impossible"),
        ("1.2", {"claimed": 120, "unit": "%", "text": "an MFU of 120 %"}, "impossible"),
        ("1.05", {"claimed": 105, "unit": "%", "text": "memory bandwidth utilisation of 105 %"}, "impossible"),
        ("1.1", {"claimed": 1.1, "text": "HFU = 1.1"}, "impossible"),
        ("1.9", {"claimed": 1.9, "text": "utilisation 1.9 times that of GPT-3"}, "ok"),
        ("95 %", {"claimed": 95, "unit": "%", "quantity": "MFU"}, "ok"),
        ("1.3", {"claimed": 1.3, "unit": "x", "quantity": "MFU ratio", "kind": "ratio"}, "ok"),
        ("28.6 GB", {"claimed": "<30", "unit": "GB", "kind": "bound"}, "ok"),
        ("30.5 GB", {"claimed": "<30", "unit": "GB", "kind": "bound"}, "loose"),
        ("50 GB", {"claimed": 30, "unit": "GB", "kind": "bound", "bound": "upper"}, "wrong"),
        ("286 GB", {"claimed": 30, "unit": "GB", "kind": "bound", "bound": "upper"}, "garbled x10"),
        ("28.6 GB", {"claimed": 30, "unit": "GB", "kind": "bound", "bound": "lower"}, "loose"),
        ("28.6 GB", {"claimed": 3, "unit": "GB", "kind": "bound", "text": "more than 3 GB"}, "ok"),
        ("671 GB", {"claimed": 500, "unit": "GB", "kind": "bound", "text": "greater than 500 GB"}, "ok"),
        ("671 GB", {"claimed": 900, "unit": "GB", "kind": "bound", "text": "no fewer than 900 GB"}, "wrong"),
        ("671 GB", {"claimed": 700, "unit": "GB", "kind": "bound", "text": "fewer than 700 GB"}, "ok"),
        ("671 GB", {"claimed": 600, "unit": "GB", "kind": "bound", "text": "no more than 600 GB"}, "loose"),
        ("28.6 GB", {"claimed": 30, "unit": "GB", "kind": "bound", "text": "fits in 30 GB"}, "ok"),
        ("15", {"claimed": 120, "unit": "layers", "kind": "divides"}, "ok"),
        ("120", {"claimed": 15, "unit": "stages", "kind": "divides"}, "ok"),
        (["15", "16"], {"claimed": 120, "unit": "layers", "kind": "divides"}, "tension"),
        ("120", {"claimed": 25000, "unit": "GPUs", "kind": "divides"}, "loose"),
        ("7", {"claimed": 10, "kind": "divides"}, "wrong"),
        ("120 / 16", {"claimed": 120, "unit": "layers", "kind": "divides"}, "loose"),
        ("128 / 8", {"claimed": 120, "unit": "layers", "kind": "divides"}, "loose"),
        ("120 / 15", {"claimed": 120, "unit": "layers", "kind": "divides"}, "ok"),
    ],
)
def test_the_rules(expression: str | list[str], claim: dict[str, Any], label: str) -> None:
    assert one(expression, **claim).label == label


def test_the_tolerance_covers_rounding_to_two_digits_and_no_more() -> None:
    assert max(miss((round(v / 10) * 10 / 100,) * 2, v / 100) for v in range(100, 1000)) < TOLERANCE + 1e-12
    assert one("1.05", claimed=1.0).verdict == "ok"
    assert one("1.00", claimed=1.05).verdict == "loose"
    assert one("1", claimed=1 + NEARLY * 0.99).verdict == "loose"
    assert one("1", claimed=1 + NEARLY * 1.01).verdict == "wrong"


def test_a_tolerance_of_its_own_needs_a_reason() -> None:
    with pytest.raises(PlanError, match="claim c: reason: missing"):
        one("100", claimed=108, tolerance=0.1)
    assert one("100", claimed=108, tolerance=0.1, reason="measured to 10 %").verdict == "ok"
    assert one("100", claimed=101, tolerance=0.001, reason="counted").verdict == "loose"


def test_a_share_per_node_is_judged_by_the_number_of_nodes() -> None:
    share = {"claimed": 130, "unit": "B parameters/node"}
    seen = one("1831B parameters / 16 nodes", **share)
    said = one("114.4B parameters", claimed=130, unit="B parameters", whole="1831B parameters", part="node")
    for verdict in (seen, said):
        assert (verdict.verdict, verdict.nearest) == ("wrong", 14)
        assert "nearest node count 14" in verdict.note
    assert one("1831B parameters / 14 nodes", **share).verdict == "ok"


def test_neighbours_that_divide_are_named() -> None:
    assert one("120", claimed=25000, kind="divides").corrected == "24,960 or 25,080"
    assert one("208", claimed=15, kind="divides").corrected == "13 or 16"


def test_claims_speak_of_the_recipe_and_of_devices() -> None:
    verdict = one("6 * active_parameters * 100 tokens/s/GPU / a100_80_bf16", claimed=53.6, unit="%", quantity="MFU")
    assert verdict.label == "ok"
    assert "active_parameters" in sheet_of([verdict]).notes[0]
    assert one("active_parameters", claimed=70, unit="B parameters", given={"active_parameters": "70e9"}).label == "ok"


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"id": None}, "claim None: id"),
        ({"text": ""}, "claim c: text"),
        ({"text": 5}, "claim c: text"),
        ({"kind": "guess"}, "claim c: kind: 'guess'"),
        ({"claimed": None}, "claim c: claimed: missing"),
        ({"claimed": "5 GB"}, "claim c: claimed: '5 GB' has a unit"),
        ({"claimed": [1, 2, 3]}, "claim c: claimed"),
        ({"claimed": True}, "claim c: claimed"),
        ({"claimed": float("nan")}, "claim c: claimed"),
        ({"unit": "GBB"}, "claim c: unit: no quantity or unit 'GBB'"),
        ({"unit": "0 GB"}, "claim c: unit"),
        ({"bound": "left"}, "claim c: bound"),
        ({"tolerance": 2, "reason": "r"}, "claim c: tolerance"),
        ({"readings": 5}, "claim c: readings"),
        ({"readings": [{"expr": "5"}]}, "claim c: readings: number 1"),
        ({"readings": [{"name": "r", "expression": "1/0"}]}, "claim c: expression 'r': '1/0' divides by zero"),
        ({"readings": [{"name": "r", "expression": "3 foo"}]}, "claim c: expression 'r'"),
        ({"verdict": "ok"}, "claim c: verdict: unknown field"),
    ],
)
def test_a_malformed_claim_is_named_with_its_field(claim: dict[str, Any], message: str) -> None:
    base = {"id": "c", "text": "t", "claimed": 5, "readings": [{"name": "r", "expression": "5"}]}
    with pytest.raises(PlanError) as error:
        audit({"claims": [base | claim]})
    assert message in str(error.value)
    assert str(error.value).count("\n") <= 1


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "no claims"),
        ({"claims": []}, "no claims"),
        ({"claims": [5]}, "claim number 1"),
        ({"claims": [{"id": 1, "text": "t"}] * 2}, "claim 1: id is used twice"),
        ({"claims": [{"id": 1, "text": "t"}], "claim": 1}, "unknown key claim"),
        ({"claims": [{"id": 1, "text": "t"}], "given": {"a": "q + 1"}}, "given a: no quantity or unit 'q'"),
        ({"claims": [{"id": 1, "text": "t"}], "given": {"a": "a"}}, "given a: no quantity or unit 'a'"),
        ({"claims": [{"id": 1, "text": "t"}], "given": {"a b": "1"}}, "given a b: not a name"),
        ({"claims": [{"id": 1, "text": "t"}], "given": {"a": []}}, "given a: give a number"),
        ({"claims": [{"id": 1, "text": "t"}], "nouns": ["a b"]}, "nouns must be"),
        ({"claims": [{"id": 1, "text": "t"}], "recipe": 5}, "recipe must be"),
    ],
)
def test_a_malformed_file_is_told_what_to_change(table: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError) as error:
        audit(table)
    assert message in str(error.value)


NUMBER = st.one_of(st.floats(-1e290, 1e290), st.integers(-(10**18), 10**18), st.just(0))


@given(
    st.sampled_from(["value", "divides", "ratio", "bound"]),
    st.one_of(NUMBER, st.lists(NUMBER, min_size=1, max_size=2)),
    st.lists(NUMBER.map(lambda v: repr(float(v))), min_size=1, max_size=3),
    st.sampled_from(["", "%", "GB", "cents / 1k tokens", "TFLOP", "B parameters/node", "x"]),
    st.sampled_from(["", "GB", "FLOP", "$ / token", "parameters / 3 nodes"]),
    st.sampled_from(["size", "MFU"]),
)
def test_any_numbers_get_a_verdict(
    kind: str, claimed: Any, values: list[str], unit: str, own: str, quantity: str
) -> None:
    verdict = one([f"{v} {own}" for v in values], claimed=claimed, unit=unit, kind=kind, quantity=quantity)
    sheet_of([verdict])
    assert verdict.verdict in ("ok", "tension", "garbled", "loose", "wrong", "impossible")


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 10**400), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=5,
)
FIELDS = ("id", "text", "unit", "claimed", "readings", "kind", "bound", "whole", "part", "tolerance", "quantity")


@given(
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=2), st.dictionaries(st.text(max_size=6), JSON, max_size=1)
)
def test_any_file_gets_verdicts_or_one_short_error(fields: dict[str, Any], given_: dict[str, Any]) -> None:
    base = {"id": "c", "text": "t", "claimed": 5, "unit": "GB", "readings": [{"name": "r", "expression": "5 GB"}]}
    try:
        verdicts = audit({"claims": [base | fields], "given": given_})
    except PlanError as error:
        message = str(error)
    else:
        message = "claim" * len(verdicts)
    assert "claim" in message or "given" in message
    assert len(message) < 700


def test_a_file_names_its_recipe(tmp_path: Path) -> None:
    file = tmp_path / "claims.toml"
    file.write_text('recipe = "pocket"\n[[claims]]\nid = 1\ntext = "t"\nclaimed = 16\nunit = "experts"\n'
                    'readings = [{ name = "r", expression = "n_experts" }]\n')  # fmt: skip
    assert [v.verdict for v in audit(file)] == ["ok"]
