"""Scenarios side by side, end to end."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scenario_texts import A100, H100, SERVE, TOP
from typer.testing import CliRunner

from moesaic.cli import app
from moesaic.errors import PlanError
from moesaic.plan.compare import compare_plan
from moesaic.plan.compare.choose import price_all
from moesaic.plan.compare.evaluate import Case, case
from moesaic.plan.compare.scenarios import read_scenarios
from moesaic.plan.compare.uncertainty import quantiles
from moesaic.plan.cost import days, dollars
from moesaic.plan.device import device
from moesaic.plan.page import write_page
from moesaic.plan.prices import prices
from moesaic.plan.sheet import Interval, Sheet


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def made(text: str) -> Path:
        path = tmp_path / "scenarios.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return made


@pytest.fixture(scope="module")
def example() -> Sheet:
    return compare_plan(samples=1024)


def rows(sheet: Sheet, key: str) -> dict[str, Mapping[str, Any]]:
    return {str(row["scenario"]): row for table in sheet.tables if table.key == key for row in table.rows}


def cases(path: Path) -> list[Case]:
    return [case(s, prices()) for s in read_scenarios(path)]


def test_the_described_runs(write: Any) -> None:
    """claims.csv, rows 39 to 42, at 6 x 278.9 B x 13 T FLOP."""
    found = compare_plan(write(TOP + A100 + H100))
    a100, h100 = (rows(found, "scenarios")[name] for name in ("A100", "H100"))
    assert (a100["days"].p10, a100["days"].p90) == pytest.approx((89.8, 101.0), abs=0.5)
    assert (a100["run_usd"].p10, a100["run_usd"].p90) == pytest.approx((54e6, 60.5e6), abs=5e5)
    assert (h100["days"].p10, h100["days"].p90) == pytest.approx((72, 82), abs=1)
    assert (h100["run_usd"].p10, h100["run_usd"].p90) == pytest.approx((28e6, 32e6), abs=5e5)
    assert rows(found, "training")["H100"]["claimed_mfu_share"] == pytest.approx(0.56, abs=0.01)
    assert rows(found, "training")["A100"]["claimed_mfu_share"] is None


def test_a_claim_out_of_reach_is_said(write: Any) -> None:
    notes = " ".join(compare_plan(write(TOP + H100)).notes)
    assert "55 days would imply 56 % MFU over the run, above the 38 to 43 %" in notes


def test_totals_agree_with_the_product_of_log_normals(write: Any) -> None:
    mfu, rent = Interval(0.30, 0.36, 0.432), Interval(0.8, 1.6, 3.2)
    text = A100.replace("[0.32, 0.36]", "[0.30, 0.36, 0.432]") + "dollars_per_device_hour = [0.8, 1.6, 3.2]\n"
    (found,) = price_all(cases(write(TOP + text)), 4096, 1)
    run = found.case.run
    assert run
    took = days(run.tokens, run.flop_per_token, 24_960, device("a100-80").peak("bf16"), mfu)
    exact = dollars(24_960, took, rent)
    drawn = quantiles(found.sampled.run)
    assert [drawn.p10, drawn.p50, drawn.p90] == pytest.approx([exact.p10, exact.p50, exact.p90], rel=0.025)


def test_a_layout_given_is_what_plan_train_says(write: Any) -> None:
    from moesaic.plan import train_plan

    text = TOP + A100.replace("{ run_mfu = [0.32, 0.36] }", "{ tp = 8, pp = 15, ep = 16 }")
    (found,) = price_all(cases(write(text)), 100, 1)
    sheet = train_plan("gpt4", "a100-80", 24_960, tp=8, pp=15, ep=16, tokens="13T", batch="60M")
    said = sheet["days"]
    assert isinstance(said, Interval)
    assert found.middle.days[0] == pytest.approx(said.p50, rel=1e-6)
    assert found.middle.goodput[0] == pytest.approx(sheet["goodput_share"])


def test_the_search_is_no_slower_than_a_layout_given(write: Any) -> None:
    given = A100.replace("{ run_mfu = [0.32, 0.36] }", "{ tp = 8, pp = 15, ep = 16 }")
    free = A100.replace("training = { run_mfu = [0.32, 0.36] }\n", "").replace('"A100"', '"free"')
    fixed, chosen = price_all(cases(write(TOP + given + free)), 100, 1)
    assert chosen.case.run
    assert chosen.case.run.fits
    assert chosen.middle.days[0] <= fixed.middle.days[0] * 1.001


def test_a_bought_machine_by_hand(write: Any) -> None:
    text = (
        TOP
        + H100.replace('"rent"', '"buy"').replace('prices = "described"\n', "dollars_per_device = 30_000\n")
        + """
[scenarios.money]
network_dollars_per_device = 4000
dollars_per_kwh = 0.1
pue = 1.2
hall_dollars_per_kw_month = 100
operation_share_of_capex_per_year = 0.05
amortisation_years = 5
residual_share = 0.2
busy_share = 0.5
draw_share = 0.8
storage_tb = 1000
storage_dollars_per_tb = 200
"""
    )
    (found,) = price_all(cases(write(text.replace("storage_tb = 1e-6", ""))), 100, 1)
    run, m = found.case.run, found.middle
    assert run
    machines = 8192 + 8 * run.spare_nodes
    up_front = machines * 34_000 + 1000 * 200
    megawatts = 8192 * (0.8 * 700 + 575) * 1.2 / 1e6
    opex = megawatts * 1000 * 8760 * 0.1 + machines * 1.275 * 100 * 12 + 0.05 * up_front
    own = up_front * 0.8 / 5 + opex
    assert m.capex[0] == pytest.approx(up_front)
    assert m.megawatts[0] == pytest.approx(megawatts)
    assert m.opex[0] == pytest.approx(opex)
    assert m.run[0] == pytest.approx(own * m.days[0] / 365 / 0.5)
    assert m.per_year[0] == pytest.approx(m.run[0])


def test_serving_money_by_hand(write: Any) -> None:
    text = SERVE + H100.replace("training = { run_mfu = [0.38, 0.43], claimed_days = 55 }\n", "").replace(
        "count = 8_192\n", ""
    )
    (found,) = price_all(cases(write(text)), 100, 1)
    m = found.middle
    assert m.capacity
    clusters = np.ceil(50 * 1.5 / m.capacity.requests_per_s[0])
    assert m.clusters[0] == clusters
    assert m.served[0] == pytest.approx(clusters * 128 * 8760 * 2.0)
    assert m.million_tokens[0] == pytest.approx(m.served[0] / (50 * 3600 * 8760 * 1800) * 1e6)
    assert m.utilisation[0] == pytest.approx(50 / (clusters * m.capacity.requests_per_s[0]))
    assert m.per_year[0] == m.served[0]


def test_a_number_of_devices_that_does_not_serve_the_demand(write: Any) -> None:
    text = SERVE + H100.replace("training = { run_mfu = [0.38, 0.43], claimed_days = 55 }\n", "").replace(
        "8_192", "512"
    )
    sheet = compare_plan(write(text), samples=200)
    (row,) = rows(sheet, "scenarios").values()
    assert row["fits"] is False
    assert re.search(r"serving needs \d+ clusters and has 4", str(row["obstacle"]))
    assert not rows(sheet, "recommended")


def test_missed_latency_bars_a_scenario(write: Any) -> None:
    slow = H100.replace('"H100"', '"slow"') + "serving = { tpot_ms = 5 }\n"
    sheet = compare_plan(write(TOP + SERVE + H100 + slow), samples=200)
    table = rows(sheet, "scenarios")
    assert (table["H100"]["meets_latency"], table["slow"]["meets_latency"]) == (True, False)
    assert set(rows(sheet, "recommended")) == {"H100"}


def test_more_runs_than_a_year_has_days_bar_a_scenario(write: Any) -> None:
    text = TOP.replace('batch = "60M"', 'batch = "60M"\nruns_per_year = 5') + H100
    (row,) = rows(compare_plan(write(text), samples=200), "scenarios").values()
    assert "5 runs of" in str(row["obstacle"])


def test_training_that_does_not_fit_bars_a_scenario(write: Any) -> None:
    small = H100.replace("8_192", "16").replace("training = { run_mfu = [0.38, 0.43], claimed_days = 55 }\n", "")
    sheet = compare_plan(write(TOP + small), samples=200)
    (row,) = rows(sheet, "scenarios").values()
    assert row["obstacle"] == "training does not fit the memory"
    assert "H100 is not recommended for anything: training does not fit the memory." in sheet.notes


def test_a_users_prices_lie_over_the_dated_ones(write: Any, tmp_path: Path) -> None:
    mine = tmp_path / "prices.toml"
    mine.write_text("[rent.h100]\nvalue = 1.0\n", encoding="utf-8")
    path = write(TOP + H100.replace('prices = "described"\n', ""))
    cheap, usual = compare_plan(path, prices=mine), compare_plan(path)
    a, b = (rows(s, "scenarios")["H100"]["run_usd"].p50 for s in (cheap, usual))
    assert a == pytest.approx(8192 * 24 * rows(cheap, "scenarios")["H100"]["days"].p50, rel=1e-3)
    assert b > 2 * a


def test_the_page_of_the_example(example: Sheet, tmp_path: Path) -> None:
    path = tmp_path / "decision.html"
    write_page(example, path)
    page = path.read_text(encoding="utf-8")
    assert page.count("<svg") >= 3
    assert "H100, bought" in page
    (chart,) = [c for c in example.charts if c.kind == "tornado"]
    assert len(chart.marks) == 1
    assert len(chart.categories) == len(chart.series["low"]) == len(chart.series["high"]) > 3


def test_json_has_stable_keys_with_units(example: Sheet) -> None:
    found = json.loads(json.dumps(example.to_json(), allow_nan=False))
    assert {"scenarios", "recommended", "training", "serving", "rent_or_buy", "tornado", "notes"} <= set(found)
    (keys,) = {tuple(row) for row in found["scenarios"]}
    assert keys == (
        "scenario", "hardware", "mode", "days", "run_usd", "served_usd_per_1k_tokens", "clusters", "meets_latency",
        "power_mw", "capex_usd", "opex_usd_per_year", "total_usd_per_year", "obstacle", "fits",
    )  # fmt: skip
    for row in found["scenarios"]:
        assert row["days"]["p10"] < row["days"]["p50"] < row["days"]["p90"]
        assert (row["capex_usd"] is None) == (row["mode"] == "rent")


def test_every_aim_takes_the_smallest_and_says_why(example: Sheet) -> None:
    table = rows(example, "scenarios")
    for choice in (row for t in example.tables if t.key == "recommended" for row in t.rows):
        assert choice["scenario"] in table
        assert choice["reason"]
        assert 0 < choice["chance_share"] <= 1
        if choice["aim"] == "soonest trained":
            assert choice["value"] == min(row["days"].p50 for row in table.values())


def test_the_command(write: Any) -> None:
    run = CliRunner()
    shown = run.invoke(app, ["plan", "compare", "--samples", "200", "--explain"])
    assert shown.exit_code == 0
    assert "No file was given" in shown.output
    assert "runs a year x a training run + serving" in shown.output
    text = run.invoke(app, ["plan", "compare", "--example"]).output
    again = run.invoke(app, ["plan", "compare", str(write(text)), "--json", "--scenario", "H100, bought"])
    assert again.exit_code == 0
    assert json.loads(again.output)["capex_usd"]["p50"] > 1e8


def test_wrong_options(write: Any) -> None:
    path = write(TOP + H100)
    with pytest.raises(PlanError, match='no scenario "B200"; the file has: H100'):
        compare_plan(path, scenario="B200")
    with pytest.raises(PlanError, match="--samples 3"):
        compare_plan(path, samples=3)
