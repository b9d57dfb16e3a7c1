"""Expressions: units as people write them, arithmetic as Python does it, and nothing else."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moesaic.plan.audit.expressions import LONGEST, ExpressionError, Named, evaluate
from moesaic.plan.audit.units import Units, unit_of

UNITS = Units(["video"])
GIVEN = {
    "N": Named(UNITS.number(70e9), True),
    "tokens": Named(UNITS.number(15e12), True),
}


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("560 GFLOP per token", 560e9, "FLOP/token"),
        ("TFLOPs/token", 1e12, "FLOP/token"),
        ("312 TFLOPS", 312e12, "FLOP/s"),
        ("1 petaflop/s-days", 8.64e19, "FLOP"),
        ("PF-days", 8.64e19, "FLOP"),
        ("PFLOPs-days", 8.64e19, "FLOP"),
        ("2 TeraFLOPs", 2e12, "FLOP"),
        ("3 H100 GPU hours", 10800, "GPU*s"),
        ("$0.0049 per 1k tokens", 4.9e-6, "$/token"),
        ("490 cents/1M tokens", 4.9e-6, "$/token"),
        ("$/M tokens", 1e-6, "$/token"),
        ("USD/Mtok", 1e-6, "$/token"),
        ("$2/GPU-hour", 2 / 3600, "$/GPU/s"),
        ("3 A100 hours", 10800, "GPU*s"),
        ("$1/GPU-hour * 25,000 GPUs * 95 days", 57e6, "$"),
        ("80GB", 80e9, "byte"),
        ("80 GiB", 80 * 2**30, "byte"),
        ("400 Gbit/s", 50e9, "byte/s"),
        ("50 kWh", 1.8e8, "J"),
        ("tokens per second per GPU", 15e12, "1/GPU/s"),  # standing alone, a given name is the given one
        ("7 tokens/s/GPU", 7, "token/GPU/s"),  # beside a number, the unit
        ("13T tokens", 13e12, "token"),
        ("70B parameters", 70e9, "FLOP/token"),
        ("2 x 120 x 128", 30720, "pure number"),
        ("34 %", 0.34, "pure number"),
        ("(2 + 2) bytes/parameter * 10 parameters", 40, "byte"),
        ("12 GB / (2 + 1) GPUs", 4e9, "byte/GPU"),
        ("24,960 GPU + 120", 25080, "GPU"),
        ("95 days / 2 days", 47.5, "pure number"),
        ("16*(1-(1-2/16)^64)", 16 * (1 - (7 / 8) ** 64), "pure number"),
        ("min(3 s, 5 ms)", 0.005, "s"),
        ("sqrt(9 s**2)", 3, "s"),
        ("ceil(3.2)", 4, "pure number"),
        ("5 videos", 5, "video"),
        ("2*N", 140e9, "pure number"),
        ("2^-3", 0.125, "pure number"),
    ],
)
def test_units_are_read_as_people_write_them(text: str, value: float, unit: str) -> None:
    result = evaluate(text, UNITS, GIVEN)
    assert result.quantity.magnitude == pytest.approx(value)
    assert unit_of(result.quantity) == unit


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__import__('os').system('true')", "cannot read"),
        ("open(1)", "no function 'open'"),
        ("(1).real", "cannot read"),
        ("N.real", "cannot read"),
        ("N if N else 1", "not arithmetic"),
        ("9**9**9", "too large"),
        ("(2 s)**99", "too large"),
        ("2**(3 s)", "must be a pure number"),
        ("10.0**400", "divides by zero or overflows"),
        ("1e999", "too large"),
        ("1e308*1e308", "not a finite number"),
        ("1/0", "divides by zero"),
        ("(-8)**0.5", "has no value"),
        ("log(0)", "has no value"),
        ("3 tokens - 2 sequences", "cannot add or compare token and sequence"),
        ("3 s + 2", "cannot add or compare s and pure number"),
        ("5 GFLPO", "no quantity or unit 'GFLPO'"),
        ("5 gflops", "no quantity or unit"),
        ("5 Gflops", "GFLOP or GFLOP/s"),
        ("min()", "takes at least one"),
        ("sqrt(1, 2)", "takes one"),
        ("1 +", "not arithmetic"),
        ("", "not arithmetic"),
        ("(" * 300, "not arithmetic"),
        ("1+" * LONGEST + "1", "longer than"),
        ("a := 3", "cannot read"),
    ],
)
def test_what_is_no_arithmetic_is_refused_with_a_reason(text: str, message: str) -> None:
    with pytest.raises(ExpressionError, match=message):
        evaluate(text, UNITS, GIVEN)


@given(st.text(st.sampled_from("0123456789.,eE+-*/^()%$kMGBT sxNFLOPdaystokenh_[]'"), max_size=60))
@example("$-s")
@example("(()) s")
@example("GPU-")
@example(") s")
def test_any_text_has_a_finite_value_or_a_reason(text: str) -> None:
    try:
        value = evaluate(text, UNITS, GIVEN).quantity.magnitude
    except ExpressionError:
        value = 0.0
    assert abs(value) < float("inf")


NUMBERS = st.floats(1e-3, 1e6).map(lambda v: repr(round(v, 4)))


SUMS = st.recursive(
    NUMBERS,
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda parts: f"({' '.join(parts)})"),
    max_leaves=12,
)


@given(SUMS)
def test_arithmetic_is_that_of_python(text: str) -> None:
    try:
        expected = eval(text)
    except ZeroDivisionError:
        return
    assert evaluate(text, UNITS, {}).quantity.magnitude == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_only_expressions_without_any_unit_are_bare() -> None:
    assert evaluate("6 * N * tokens", UNITS, GIVEN).bare
    assert not evaluate("6 * N * 13T tokens", UNITS, GIVEN).bare
    assert not evaluate("5 %", UNITS, {}).bare
