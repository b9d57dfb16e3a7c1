"""Owning against renting, and the log-normals that everything is drawn from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.plan.compare.money import (
    HOURS,
    Owned,
    amortisation,
    break_even_months,
    break_even_share,
    capex,
    energy_per_year,
    hall_per_year,
)
from moesaic.plan.compare.uncertainty import Input, draws, quantiles, swings
from moesaic.plan.cost import megawatts, product
from moesaic.plan.sheet import Z90, Interval

PRICE = st.floats(1.0, 1e5)


def test_a_machine_by_hand() -> None:
    # 1,000 devices and 20 spares at 30,000 + 4,000, 100 TB at 200
    up_front = capex(1000, 0.02, 30_000, 4_000, 100, 200)
    assert up_front == 1020 * 34_000 + 20_000
    assert amortisation(up_front, 4, 0.1) == pytest.approx(up_front * 0.9 / 4)
    assert amortisation(100.0, 4, 0.0, 0.08) == pytest.approx(25 + 4)
    drawn = megawatts(1000, 700, 575, utilisation=0.85, pue=1.25)
    assert drawn == pytest.approx(1.4625)  # (595 + 575) W x 1.25
    assert energy_per_year(drawn, 0.08) == pytest.approx(1462.5 * 8760 * 0.08)
    assert hall_per_year(1000, 700, 575, 150) == pytest.approx(1275 * 150 * 12)


@settings(derandomize=True, deadline=None)
@given(PRICE, PRICE, PRICE, PRICE, PRICE)
def test_what_a_machine_costs_is_the_sum_of_its_parts(a: float, b: float, c: float, d: float, e: float) -> None:
    own = Owned(a, b, c, d, e)
    assert own.opex == c + d + e
    assert own.per_year == pytest.approx(b + c + d + e)


@settings(derandomize=True, deadline=None)
@given(st.floats(1e3, 1e9), st.integers(1, 10**5), st.floats(0.1, 20))
def test_at_the_break_even_share_both_cost_the_same(own: float, devices: int, rent: float) -> None:
    share = break_even_share(own, devices, rent)
    assert share * HOURS * devices * rent == pytest.approx(own)


@settings(derandomize=True, deadline=None)
@given(st.floats(1e3, 1e9), st.floats(1, 1e8), st.integers(1, 10**5), st.floats(0.1, 20), st.floats(0.1, 1))
def test_after_the_break_even_months_both_have_cost_the_same(
    capital: float, opex: float, devices: int, rent: float, busy: float
) -> None:
    months = float(break_even_months(capital, opex, devices, rent, busy))
    rented = devices * HOURS * rent * busy
    if np.isinf(months):
        assert rented <= opex
    else:
        assert months / 12 * rented == pytest.approx(capital + months / 12 * opex)


def known(key: str, low: float, middle: float, high: float, **more: float) -> Input:
    return Input(key, key, "", Interval(low, middle, high), "", **more)


def test_an_input_is_its_quantiles() -> None:
    one = known("a", 1.0, 2.0, 8.0)
    assert one.at(np.array([-Z90, 0.0, Z90])) == pytest.approx([1, 2, 8])
    found = quantiles(one.at(draws(["a"])["a"]))
    assert [found.p10, found.p50, found.p90] == pytest.approx([1, 2, 8], rel=5e-3)
    assert known("b", 0.5, 0.8, 0.95, most=1.0).at(np.array([4.0]))[0] == 1.0
    assert known("c", 1.05, 1.2, 1.5, least=1.0).at(np.array([-9.0]))[0] == 1.0


def test_sampling_agrees_with_the_product_of_log_normals() -> None:
    """Symmetric log-normals: the product is known in closed form (`cost.product`)."""
    spread = {
        "price": (1.0, 2.0, 4.0),
        "mfu": (0.3, 0.36, 0.432),
        "hours": (50.0, 60.0, 72.0),
        "pue": (1.1, 1.21, 1.331),
    }
    inputs = {key: known(key, *ends) for key, ends in spread.items()}
    z = draws(inputs)
    drawn = {key: one.at(z[key]) for key, one in inputs.items()}
    sampled = quantiles(1e3 * drawn["price"] * drawn["hours"] * drawn["pue"] / drawn["mfu"])
    exact = product(1e3, *(inputs[k].interval for k in ("price", "hours", "pue")), per=(inputs["mfu"].interval,))
    assert [sampled.p10, sampled.p50, sampled.p90] == pytest.approx([exact.p10, exact.p50, exact.p90], rel=0.025)


def test_draws_are_seeded_stratified_and_each_key_has_its_own() -> None:
    alone, together = draws(["b"], 512), draws(["a", "b", "c"], 512)
    assert np.array_equal(alone["b"], together["b"])
    assert not np.array_equal(together["a"], together["c"])
    assert not np.array_equal(draws(["b"], 512, seed=1)["b"], alone["b"])
    assert abs(np.corrcoef(together["a"], together["b"])[0, 1]) < 0.15
    assert np.mean(alone["b"] < -Z90) == pytest.approx(0.1, abs=1 / 512)


def test_swings_move_one_input_at_a_time() -> None:
    inputs = {"a": known("a", 1, 2, 3), "sure": known("sure", 5, 5, 5), "b": known("b", 1, 2, 3)}
    moved, z = swings(inputs)
    assert moved == ["a", "b"]
    assert z["a"].tolist() == [0, -Z90, Z90, 0, 0]
    assert z["b"].tolist() == [0, 0, 0, -Z90, Z90]
    assert not z["sure"].any()
