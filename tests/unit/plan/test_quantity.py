"""Counts, durations and lengths are read exactly or refused in one line."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.errors import PlanError
from moesaic.plan.quantity import human, human_time, parse_context, parse_count, parse_duration

NO_NUMBER = [
    "", " ", "-1", "-13T", "+5", "0", "0T", "13 TT", "13TM", "1e400", "1e-400", "1e999999999", "nan", "inf", "NaN T",
    "T", "k", "1.2.3", "1..", "24,96", "1,5T", "1,,000", "1__0", "_1", "1_", "0x10", "1/2", "١٣", "13t", "13Q",
    "5 apples", "1e", "12 34", "9" * 400, "a\nb", "--5",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("13T", 13e12), ("60M", 60e6), ("24_960", 24960), ("24,960", 24960), ("1,832.6B", 1832.6e9),
        ("2.15e25", 2.15e25), (" 13 T ", 13e12), ("16.1k", 16100.0), ("1.", 1.0), ("0.29", 0.29), ("1e-3", 1e-3),
        ("1e3k", 1e6), ("8K", 8000.0),
    ],
)  # fmt: skip
def test_counts_are_read_exactly(text: str, value: float) -> None:
    assert parse_count(text, "--tokens") == value


@pytest.mark.parametrize("text", NO_NUMBER)
@pytest.mark.parametrize("read", [parse_count, parse_duration, parse_context])
def test_nonsense_is_refused_in_one_line(read: object, text: str) -> None:
    with pytest.raises(PlanError, match=r"^--it .*: give a ") as refused:
        read(text, "--it")  # type: ignore[operator]
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 150


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("600s", 600), ("10min", 600), ("2h", 7200), ("3d", 259200), ("250ms", 0.25), ("1.5 h", 5400), ("1,000s", 1000)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text, "--interval") == seconds


@pytest.mark.parametrize("text", ["600", "10m", "2 hours", "1h30", "1e3s", "0s", "3D", "5y", "9" * 400 + "d"])
def test_durations_need_a_unit_that_is_known(text: str) -> None:
    with pytest.raises(PlanError, match="with its unit"):
        parse_duration(text, "--interval")


def test_a_duration_of_nothing_only_where_it_is_meant() -> None:
    assert parse_duration("0s", "--restart", zero=True) == 0
    for text in ("0", "-1s", "nan", ""):
        with pytest.raises(PlanError, match="with its unit"):
            parse_duration(text, "--restart", zero=True)


def test_durations_for_people() -> None:
    times = (0.05, 12.83, 600, 7297, 95 * 86_400)
    assert [human_time(s) for s in times] == ["50 ms", "12.8 s", "10 min", "2.03 h", "95 d"]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("8k", 8192), ("32k", 32768), ("128K", 131072), ("1M", 1048576), ("8192", 8192), ("1.5k", 1536)],
)
def test_context_lengths_are_binary(text: str, tokens: int) -> None:
    read = parse_context(text, "--context")
    assert read == tokens
    assert isinstance(read, int)


@pytest.mark.parametrize("text", ["0.5", "1.3k", "8T", "1e4", "2000000M", "8 kk", "0k"])
def test_context_lengths_are_whole_and_possible(text: str) -> None:
    with pytest.raises(PlanError, match="whole number of tokens"):
        parse_context(text, "--context")


@given(st.text(alphabet="0123456789.,_eE+-kKMGBTsmindh \n", max_size=12))
def test_whatever_is_typed_is_a_positive_number_or_an_error(text: str) -> None:
    for read in (parse_count, parse_duration, parse_context):
        try:
            value = read(text, "x")
        except PlanError:
            continue
        assert 0 < value < math.inf


@given(st.integers(1, 10**15), st.sampled_from("kMGBT"), st.integers(0, 6))
def test_a_count_is_the_nearest_float_to_what_was_written(digits: int, suffix: str, places: int) -> None:
    scale = {"k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}[suffix]
    written = f"{digits // 10**places}.{digits % 10**places:0{places}}" if places else str(digits)
    assert parse_count(written + suffix, "x") == float(Fraction(digits, 10**places) * scale)


@given(st.integers(1, 2**20), st.sampled_from(["s", "min", "h", "d"]))
def test_durations_scale_with_their_unit(number: int, unit: str) -> None:
    assert parse_duration(f"{number}{unit}", "x") == number * {"s": 1, "min": 60, "h": 3600, "d": 86400}[unit]


@given(st.integers(1, 2**30))
def test_context_lengths_come_back(tokens: int) -> None:
    assert parse_context(str(tokens), "x") == tokens
    assert parse_context(f"{tokens}k", "x") == 1024 * tokens


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.8326e12, "1.833T"), (278.9e9, "278.9B"), (61440, "61.44k"), (0.25, "0.25"), (999_999, "1M"), (999.96e9, "1T"),
     (-5e6, "-5M"), (2.15e25, "2.15e+25"), (0, "0"), (math.inf, "inf"), (math.nan, "nan")],
)  # fmt: skip
def test_numbers_for_people(value: float, shown: str) -> None:
    assert human(value) == shown


@given(st.floats(1e-3, 9.9e14))
def test_what_is_shown_can_be_read_back(value: float) -> None:
    assert parse_count(human(value, 6), "x") == pytest.approx(value, rel=1e-5)
