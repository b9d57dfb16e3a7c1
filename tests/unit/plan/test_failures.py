"""Failures: the published anchors, the closed forms against a simulation, the verb."""

import json
import math

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from moesaic.commands.plan import plan_app
from moesaic.errors import PlanError
from moesaic.plan import failures_plan
from moesaic.plan.failures import Faults, outcome
from moesaic.plan.failures_sheet import failures_sheet
from moesaic.plan.goodput import (
    LLAMA3_RATE,
    checkpoint_time,
    daly,
    goodput,
    goodput_first_order,
    mtti,
    slow_share,
    spares,
    young,
)
from moesaic.plan.shape import Shape, shape_of
from moesaic.recipe import read_recipe

GPT4 = 1_832_588_559_360


@pytest.fixture(scope="module")
def gpt4() -> Shape:
    recipe = read_recipe("gpt4")
    return shape_of(recipe.model, recipe.name)


def test_rate_is_that_of_llama_3() -> None:
    assert abs(LLAMA3_RATE - 1.97e-5) < 5e-8
    assert mtti(LLAMA3_RATE, 16_384) / 3600 == pytest.approx(3.09, abs=0.01)  # the paper's own figure


def test_25000_gpus_break_every_two_hours(gpt4: Shape) -> None:
    sheet = failures_sheet(gpt4, 25_000, 95, Faults())
    assert sheet["mtti_h"] == pytest.approx(2.03, abs=0.005)
    assert sheet["interruptions"] == pytest.approx(1125, abs=1)
    assert sheet["checkpoint_tb"] == pytest.approx(25.7, abs=0.05)


@pytest.mark.parametrize(("c", "r", "share"), [(60, 600, 0.81), (13, 180, 0.92), (300, 1800, 0.58)])
def test_goodput_of_the_described_machine(c: float, r: float, share: float) -> None:
    m = mtti(LLAMA3_RATE, 25_000)
    assert goodput(young(c, m), c, m, r) == pytest.approx(share, abs=0.005)
    assert outcome(GPT4, 25_000, Faults(checkpoint=c, restart=r)).goodput == pytest.approx(share, abs=0.005)


def test_young_of_the_described_machine() -> None:
    assert young(60, mtti(LLAMA3_RATE, 25_000)) == pytest.approx(936, abs=1)


def test_published_runs_keep_nine_tenths_of_their_time() -> None:
    llama = outcome(405e9, 16_384, Faults(checkpoint=10, restart=300))
    assert llama.goodput == pytest.approx(0.93, abs=0.005)  # reported: above 90 %
    # MegaScale (arXiv:2402.15627, sec. 6.3): failures found and diagnosed within 10 min, checkpoints of seconds.
    assert 0.9 < outcome(175e9, 10_000, Faults(checkpoint=10, restart=600)).goodput < 0.96


def _simulated(
    tau: float, c: float, m: float, r: float, lag: float, rng: np.random.Generator, work: int = 3000
) -> tuple[float, float]:
    """Mean and standard error of wall-clock time over work kept, by playing failures one by one.

    A checkpoint becomes safe `lag` after it was taken; a failure falls back to the last safe one, then costs `r`,
    again from its start when a failure hits it.
    """
    ratios = []
    for _ in range(60):
        clock, kept = 0.0, 0
        while True:
            until = rng.exponential(m)
            safe = max(math.floor((until - lag) / (tau + c)), 0)
            if kept + safe >= work:
                clock += (work - kept) * (tau + c)
                break
            clock += until
            kept += safe
            while (hit := rng.exponential(m)) < r:
                clock += hit
            clock += r
        ratios.append(clock / (work * tau))
    return float(np.mean(ratios)), float(np.std(ratios, ddof=1) / math.sqrt(len(ratios)))


@pytest.mark.parametrize(
    ("c", "r", "tau", "seed"), [(60, 600, 936, 1), (300, 1800, 2000, 2), (13, 180, 436, 3), (60, 600, 4000, 4)]
)
def test_closed_form_is_what_a_simulation_finds(c: float, r: float, tau: float, seed: int) -> None:
    m = float(mtti(LLAMA3_RATE, 25_000))
    mean, error = _simulated(tau, c, m, r, 0.0, np.random.default_rng(seed))
    exact = 1 / float(goodput(tau, c, m, r))
    assert error / mean < 0.005  # sharp enough to notice
    assert abs(mean - exact) < 3.5 * error


def test_lag_of_an_asynchronous_checkpoint_is_what_a_simulation_finds() -> None:
    found = outcome(GPT4, 25_000, Faults(host_copy=10e9, storage=400e9, restart=300))
    assert found.stall == pytest.approx(GPT4 * 14 / 25_000 / 10e9)
    assert found.write == pytest.approx(64.1, abs=0.1)
    lag = found.write - found.stall
    assert found.down == pytest.approx(300 + lag)
    mean, error = _simulated(found.interval, found.stall, found.mean, 300, lag, np.random.default_rng(5), work=30_000)
    assert abs(mean * found.goodput - 1) < 3.5 * error + 5e-4  # the lag as a part of the restart is near, not exact


@given(st.floats(0.01, 2000), st.floats(100, 1e6), st.floats(0, 5000))
def test_daly_is_near_the_optimum(c: float, m: float, r: float) -> None:
    tau = float(daly(c, m))
    taus = np.geomspace(tau / 20, tau * 20, 2001)
    best = float(np.max(goodput(taus, c, m, r)))
    assert float(goodput(tau, c, m, r)) > best * (0.998 if c < m / 2 else 0.9)
    assert tau <= float(young(c, m)) * (1 if c < m else 2)


@pytest.mark.parametrize("c", [0.01, 0.05, 0.1, 0.2, 0.5])
def test_daly_is_the_interval_that_a_search_finds(c: float) -> None:
    low, high = 1e-9, 1.0  # in units of M, where the slope of goodput in tau has the sign of 1 - tau - e^-(tau + C)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if middle - 1 + math.exp(-middle - c) < 0 else (low, middle)
    assert daly(c, 1.0) == pytest.approx(low, rel=0.012 * c)


@given(st.floats(0.1, 100), st.floats(1e5, 1e8), st.floats(0, 100))
def test_first_order_agrees_while_failures_are_rare(c: float, m: float, r: float) -> None:
    tau = float(young(c, m))
    small = (c / tau + tau / (2 * m) + r / m) ** 2
    assert goodput_first_order(tau, c, m, r) == pytest.approx(goodput(tau, c, m, r), abs=2 * small + 1e-12)


@given(st.floats(1e-7, 1e-3), st.integers(1, 100_000))
def test_more_devices_break_more_often_and_keep_less(rate: float, devices: int) -> None:
    one, two = (outcome(GPT4, n, Faults(rate=rate, checkpoint=60)) for n in (devices, 2 * devices))
    assert one.mean == pytest.approx(2 * two.mean)
    assert 1 >= one.goodput >= two.goodput >= 0


def test_functions_broadcast() -> None:
    m = np.asarray(mtti(LLAMA3_RATE, np.array([1_000.0, 25_000.0])))
    grid = np.asarray(goodput(np.array([[100.0], [1000.0]]), 60.0, m, 600.0))
    assert grid.shape == (2, 2)
    assert grid[1, 1] == goodput(1000, 60, m[1], 600)
    assert np.all(np.asarray(daly(60, m)) < np.asarray(young(60, m)))


def test_checkpoint_time_takes_the_narrower_way() -> None:
    assert checkpoint_time(1e12, aggregate=1e11) == 10
    assert checkpoint_time(1e12, aggregate=1e11, devices=100, per_device=1e8) == 100
    assert checkpoint_time(1e12, devices=100, per_device=1e10) == 1


@pytest.mark.parametrize(
    ("devices", "hours"), [(24_960, 24.0), (1_024, 72.0), (8, 1.0), (100_000, 240.0), (10**7, 24.0)]
)
def test_spares_are_a_poisson_quantile(devices: int, hours: float) -> None:
    mean = LLAMA3_RATE * devices * hours
    found = spares(LLAMA3_RATE, devices, hours * 3600, 0.99)
    terms = [math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(found + 1)]
    assert sum(terms) >= 0.99 - 1e-9
    assert sum(terms[:-1]) < 0.99


def test_spares_suffice_in_a_simulated_pool() -> None:
    """Nodes break at random and come back after repairs of any spread: the pool runs dry 1 % of the time or less."""
    rng = np.random.default_rng(7)
    per_hour, span = LLAMA3_RATE * 25_000, 400_000.0
    broken = np.cumsum(rng.exponential(1 / per_hour, int(span * per_hour)))
    back = broken + rng.exponential(24, len(broken))
    at = rng.uniform(1000, broken[-1], 20_000)
    out = np.searchsorted(broken, at) - np.searchsorted(np.sort(back), at)
    enough = spares(LLAMA3_RATE, 25_000, 24 * 3600)
    assert np.mean(out > enough) < 0.0125
    assert np.mean(out > enough - 2) > 0.01  # and none is too many


def test_slow_devices_cost_time() -> None:
    assert slow_share(0, 10_000, 7200, 0.1) == 0
    assert slow_share(1, 1e6, 7200, 0.25) == pytest.approx(0.2)  # always one: steps take 1.25 times as long
    assert slow_share(1e-7, 10_000, 7200, 0.1) == pytest.approx(2e-3 * 0.1 / 1.1, rel=2e-3)
    quick, slow = (outcome(GPT4, 10_000, Faults(slow_rate=r)) for r in (0, 1e-4))
    assert slow.goodput == pytest.approx(quick.goodput * (1 - slow.slow))


@pytest.mark.parametrize(
    "wrong",
    [{"rate": 0}, {"rate": math.nan}, {"storage": -1}, {"restart": -1}, {"repair": math.inf}, {"confidence": 1},
     {"host_copy": 0}, {"slow_rate": -1}],
)  # fmt: skip
def test_impossible_faults_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(PlanError, match=rf"^--.*{next(iter(wrong))}"):
        Faults(**wrong)  # type: ignore[arg-type]


def test_errors_name_the_option_in_its_own_unit() -> None:
    with pytest.raises(PlanError, match=r"^--checkpoint-gb-s -2: give above 0"):
        failures_plan("gpt4", 10, storage=-2e9)
    with pytest.raises(PlanError, match=r"^--days -3: give days above 0"):
        failures_plan("gpt4", 10, -3)
    with pytest.raises(PlanError, match=r"^--price 0: give dollars"):
        failures_plan("gpt4", 10, price=0)
    with pytest.raises(PlanError, match="no option 'restrat' of a plan of failures; known: "):
        failures_plan("gpt4", 10, restrat=3)


def test_impossible_runs_are_refused(gpt4: Shape) -> None:
    with pytest.raises(PlanError, match="at least 1"):
        outcome(GPT4, 0, Faults())
    with pytest.raises(PlanError, match="checkpoint of 0 s"):
        outcome(GPT4, 10, Faults(checkpoint=0))
    with pytest.raises(PlanError, match="days"):
        failures_sheet(gpt4, 10, -1, Faults())


def test_verb_prints_stable_keys() -> None:
    app = typer.Typer()
    app.add_typer(plan_app, name="plan")
    words = ["plan", "failures", "gpt4", "--gpus", "25000", "--days", "95", "--checkpoint", "60s", "--restart", "10min"]
    ran = CliRunner().invoke(app, [*words, "--price", "1", "--straggler-rate", "1e-6", "--json"])
    assert ran.exit_code == 0, ran.output
    out = json.loads(ran.output)
    assert out["young_interval_s"] == pytest.approx(936, abs=1)
    assert out["lost_usd"] == pytest.approx(out["lost_device_hours"])
    assert out["useful_days"] == pytest.approx(95 * out["goodput_share"])
    assert 0 < out["straggler_days"] < 95
    shares = [row["goodput_share"] for row in out["goodput_by_interval"]]
    assert max(shares) == next(r["goodput_share"] for r in out["goodput_by_interval"] if r["interval"] == "Daly")
    assert [r["scenario"] for r in out["scenarios"]][-1] == "this run"


def test_hopeless_run_is_said_in_valid_json(gpt4: Shape) -> None:
    sheet = failures_sheet(gpt4, 10**9, 95, Faults())
    assert sheet["goodput_share"] == 0
    assert sheet["same_work_days"] is None
    assert json.dumps(sheet.to_json(), allow_nan=False)
    assert any("use fewer devices" in note for note in sheet.notes)


def test_sheet_draws_goodput_against_interval(gpt4: Shape) -> None:
    chart = failures_sheet(gpt4, 25_000, 95, Faults(checkpoint=60)).charts[0]
    assert chart.kind == "lines"
    assert set(chart.series) == {"exact", "first order", "Young", "Daly"}
    top = max(chart.series["exact"], key=lambda point: point[1])
    assert top[0] == pytest.approx(chart.series["Daly"][0][0], rel=0.1)


def test_storage_slower_than_the_interval_is_said(gpt4: Shape) -> None:
    sheet = failures_sheet(gpt4, 25_000, 95, Faults(host_copy=25e9, storage=50e9))
    assert any("Storage takes 8.55 min" in note for note in sheet.notes)
    assert {row["interval"] for row in sheet.tables[0].rows} >= {"Young", "Daly", "used"}
