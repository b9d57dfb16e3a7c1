"""Days, dollars, energy: the described run, arrays, intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.errors import PlanError
from moesaic.plan.cost import days, dollars, energy_mwh, implied_mfu, megawatts, product
from moesaic.plan.device import device
from moesaic.plan.sheet import Interval

FLOP = 2.15e25
A100, H100 = device("a100-80").peak("bf16"), device("h100").peak("bf16")


def test_the_described_run_on_a100() -> None:
    slow, quick = days(FLOP, 1, 25_000, A100, 0.32), days(FLOP, 1, 25_000, A100, 0.355)
    assert 89 < quick < slow < 101
    assert dollars(25_000, 90, 1) == 54e6
    assert dollars(25_000, 100, 1) == 60e6


def test_the_described_run_on_h100() -> None:
    assert implied_mfu(FLOP, 8_192, H100, 55) == pytest.approx(0.558, abs=5e-4)
    assert dollars(8_192, 55, 2) == pytest.approx(21.63e6, rel=1e-3)
    assert days(FLOP, 1, 8_192, H100, 0.38) == pytest.approx(81, abs=0.5)
    assert days(FLOP, 1, 8_192, H100, 0.43) == pytest.approx(71, abs=0.5)


@given(st.floats(1e9, 1e14), st.floats(1e9, 1e13), st.integers(1, 10**6), st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_claim_reads_back(tokens: float, flop: float, devices: int, mfu: float, goodput: float) -> None:
    took = days(tokens, flop, devices, A100, mfu, goodput)
    assert implied_mfu(tokens * flop, devices, A100, took) == pytest.approx(mfu * goodput)


def test_arrays_broadcast() -> None:
    took = days(FLOP, 1, np.array([1e4, 2e4]), A100, np.array([[0.3], [0.4]]))
    assert took.shape == (2, 2)
    assert took[0, 0] == pytest.approx(2 * took[0, 1])
    assert took[1, 1] == days(FLOP, 1, 2e4, A100, 0.4)


def test_intervals_turn_around_where_they_divide() -> None:
    took = days(FLOP, 1, 25_000, A100, Interval(0.30, 0.35, 0.40))
    assert took.p10 == pytest.approx(days(FLOP, 1, 25_000, A100, 0.40))
    assert took.p50 == pytest.approx(days(FLOP, 1, 25_000, A100, 0.35))
    assert took.p90 == pytest.approx(days(FLOP, 1, 25_000, A100, 0.30))
    paid = dollars(25_000, took, 2)
    assert paid.p90 == pytest.approx(25_000 * 24 * 2 * took.p90)


def test_independent_intervals_are_what_sampling_finds() -> None:
    rng, z = np.random.default_rng(1), 1.2815515655446004
    spread = {"mfu": (0.35, 0.10), "goodput": (0.85, 0.05), "price": (2.0, 0.3)}
    known = {k: Interval(m * np.exp(-z * s), m, m * np.exp(z * s)) for k, (m, s) in spread.items()}
    found = product(1e6, known["price"], per=(known["mfu"], known["goodput"]))
    draws = {k: m * np.exp(s * rng.standard_normal(400_000)) for k, (m, s) in spread.items()}
    sampled = np.quantile(1e6 * draws["price"] / draws["mfu"] / draws["goodput"], [0.1, 0.5, 0.9])
    assert [found.p10, found.p50, found.p90] == pytest.approx(sampled, rel=5e-3)


def test_energy_is_power_over_time() -> None:
    a100 = device("a100-80")
    power = megawatts(24_960, a100.watts, a100.host_watts, utilisation=0.9, pue=1.1)
    assert power == pytest.approx(24_960 * (400 * 0.9 + 410) * 1.1 / 1e6)
    energy = energy_mwh(24_960, 95, a100.watts, a100.host_watts, utilisation=0.9, pue=1.1)
    assert energy == pytest.approx(power * 95 * 24)
    range_ = energy_mwh(24_960, Interval(90, 95, 100), 400, 410, utilisation=0.9, pue=1.1)
    assert (range_.p10, range_.p90) == pytest.approx((energy * 90 / 95, energy * 100 / 95))


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ((FLOP, 1, 25_000, A100, 1.2), "mfu 1.2"),
        ((FLOP, 1, 25_000, A100, 0.3, 0), "goodput 0"),
        ((-1, 1, 25_000, A100, 0.3), "tokens -1"),
        ((FLOP, 1, np.array([1.0, 0.0]), A100, 0.3), "devices 0"),
        ((FLOP, 1, 25_000, A100, Interval(0.5, 0.9, 1.1)), "mfu 1.1"),
        ((float("nan"), 1, 25_000, A100, 0.3), "tokens nan"),
    ],
)
def test_impossible_runs_are_refused(arguments: tuple[float, ...], wrong: str) -> None:
    with pytest.raises(PlanError, match=wrong):
        days(*arguments)


def test_impossible_power_is_refused() -> None:
    with pytest.raises(PlanError, match=r"PUE 0\.9"):
        megawatts(10, 400, 100, utilisation=0.9, pue=0.9)
