"""The scores of the planner: how they are computed, that they do not worsen, and that no file breaks the verb."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from moesaic.cli import app
from moesaic.plan.measured import Answer, measured
from moesaic.plan.published import COLUMNS, rows
from moesaic.plan.ranking import regret, spearman
from moesaic.plan.scored import Scored
from moesaic.plan.sheet import Interval
from moesaic.plan.stack import stacks
from moesaic.plan.validate import GOALS, Validation, error, inside, part, validate, validation_sheet

ROOT = Path(__file__).parents[3]
PER_PARTITION, TOTAL = 1.10, 1.05  # how much worse a score may become, relative


@pytest.fixture(scope="module")
def shipped() -> Validation:
    return validate()


@pytest.fixture(scope="module")
def baseline() -> dict[str, object]:
    found: dict[str, object] = json.loads((ROOT / "benchmarks/results/plan_validation.json").read_text())
    return found


def scored(published: float, middle: float, split: str = "check", sigma: float = 0.1) -> Scored:
    return Scored("x", split, "memory", "GB", published, Interval.around(middle, sigma), True)


def test_scores_by_hand() -> None:
    members = [scored(100, 110), scored(100, 80), scored(200, 300), scored(10, 11, "fit")]
    members.append(Scored("y", "check", "memory", "GB", 1.0, Interval.around(9.0, 0.1), False, "listed"))
    p = part("memory", members)
    assert p.check == pytest.approx([10, -20, 50])
    assert p.mape == pytest.approx(80 / 3)
    assert p.fit == pytest.approx([10])
    assert list(p.inside) == [True, False, False]  # the interval is a factor of exp(0.128) either way
    assert p.reached == "not established"
    assert part("memory", [scored(100, 106)] * 8).reached == "yes"
    assert part("memory", [scored(100, 108)] * 8).reached == "no"


def test_an_interval_holds_eighty_percent() -> None:
    draws = np.exp(np.random.default_rng(0).normal(0, 0.3, 20_000))
    held = [inside(Scored("x", "check", "memory", "", d, Interval.around(1.0, 0.3), True)) for d in draws]
    assert np.mean(held) == pytest.approx(0.8, abs=0.01)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=3, max_size=12), st.randoms(use_true_random=False))
def test_rank_correlation_is_that_of_scipy(values: list[int], random: object) -> None:
    stats = pytest.importorskip("scipy.stats")
    other = list(values)
    random.shuffle(other)  # type: ignore[attr-defined]
    mine = spearman(np.array(values, float), np.array(other, float))
    if len(set(values)) == 1:
        assert math.isnan(mine)
    else:
        assert mine == pytest.approx(stats.spearmanr(values, other).statistic)


def test_regret_is_the_cost_of_the_planner_s_choice() -> None:
    published = np.array([10.0, 12.0, 9.0])
    assert regret(published, np.array([3.0, 2.0, 1.0])) == 0
    assert regret(published, np.array([3.0, 1.0, 2.0])) == pytest.approx(12 / 9 - 1)


def test_sets_of_layouts_follow_from_the_rows(shipped: Validation) -> None:
    names = " ".join(r.name for r in shipped.rankings)
    for known in ("Narayanan", "Jiang", "nanotron", "Liu"):
        assert known in names
    assert all(r.rows >= 3 and -1 <= r.spearman <= 1 and r.regret >= 0 for r in shipped.rankings)


def test_no_partition_worsens(shipped: Validation, baseline: dict[str, list[dict[str, float]]]) -> None:
    """The gate: 10 % for a partition, 5 % for all together; and the committed figures are those of this code."""
    now = validation_sheet(shipped).to_json()
    for before, after in zip(baseline["partitions"], now["partitions"], strict=True):
        assert after["partition"] == before["partition"]
        assert after["check_rows"] == before["check_rows"]
        assert after["check_mape_share"] <= PER_PARTITION * before["check_mape_share"], after
        assert after["check_mape_share"] >= before["check_mape_share"] / PER_PARTITION, (
            "better: run the benchmark again"
        )
    assert now["check_mape_share"] <= TOTAL * baseline["check_mape_share"]  # type: ignore[operator]
    assert now["spearman"] >= 0.95 * baseline["spearman"]  # type: ignore[operator]


def test_what_is_scored_is_sixteen_bit_with_a_layout(shipped: Validation) -> None:
    by_id = {r["id"]: r for r in rows()}
    for s in shipped.scored:
        row = by_id[s.id.removesuffix(":ttft")]
        if s.scored:
            assert row["precision"] in ("bf16", "fp16")
            assert row["tp"]
            assert s.predicted
            assert s.partition in GOALS
        else:
            assert s.reason
    assert {r["category"] for r in by_id.values()} == {"train", "infer", "memory", "reliability"}
    assert {s.id.removesuffix(":ttft") for s in shipped.scored} == set(by_id)


def test_the_goals_that_are_reached(shipped: Validation) -> None:
    """What docs/plan-validate.md claims."""
    reached = {p.name: p.reached for p in shipped.parts}
    assert (reached["dense training"], reached["memory"]) == ("yes", "yes")
    sheet = validation_sheet(shipped)
    assert isinstance(sheet["spearman"], float)
    assert isinstance(sheet["regret_share"], float)
    assert sheet["spearman"] >= 0.9
    assert sheet["regret_share"] <= 0.05


def test_seconds_are_scored_whatever_was_printed(shipped: Validation) -> None:
    answers = {a.scored.id: a for a in shipped.answers}
    mfu = answers["mpf-t3-mixtral8x22b-mcore"]
    assert isinstance(mfu, Answer)
    assert mfu.trial.row["metric"] == "mfu"
    assert error(mfu.scored) == pytest.approx(100 * (mfu.seconds / mfu.trial.published_seconds() - 1))


def test_memory_is_the_component_that_was_measured() -> None:
    """Activations of GPT 22B, by equation 2 of Korthikanti et al.: s b h L (10 + 24/t + 5 a s / (h t))."""
    found, _ = measured([r for r in rows() if r["id"].startswith("kor22-f1-22B")], stacks())
    states, none, selective = found
    s, b, h, layers, t, a = 2048, 4, 6144, 48, 8, 64
    assert none.predicted
    assert none.predicted.p50 * 2**30 == pytest.approx(s * b * h * layers * (10 + 24 / t + 5 * a * s / (h * t)))
    assert selective.predicted
    assert selective.predicted.p50 * 2**30 == pytest.approx(s * b * h * layers * 34 / t)
    assert states.predicted
    assert states.predicted.p50 * 2**30 == pytest.approx(22.1e9 / 8 * 18, rel=0.01)


def test_layouts_that_ran_out_of_memory_are_told(shipped: Validation) -> None:
    fits = [s for s in shipped.scored if s.partition == "fits" and s.predicted]
    assert len(fits) == 2
    assert any(s.predicted and s.predicted.p50 == s.published == 0 for s in fits)


cells = st.sampled_from(
    ["", "0", "-1", "1", "8", "2.5", "1e400", "nan", "x", "MLA", "fp16", "mfu", "H100-80G-SXM", "train"]
)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(0, 594), st.dictionaries(st.sampled_from(COLUMNS), cells, max_size=4))
def test_no_row_breaks_it(index: int, changes: dict[str, str]) -> None:
    row = {**rows()[index], **changes}
    for found in measured([row], stacks())[0]:
        assert isinstance(found, Scored)
        assert found.scored or found.reason


def test_the_verb_on_a_file_of_its_own(tmp_path: Path) -> None:
    """Hidden rows: fewer columns, unknown names, no split. Everything is listed, nothing crashes."""
    keep = ("id", "category", "model", "device", "n_devices", "tp", "pp", "dp", "seq_len", "global_batch_seqs")
    keep += (
        "precision",
        "metric",
        "unit",
        "value",
        "n_layers",
        "d_model",
        "n_heads",
        "n_kv_heads",
        "d_ff",
        "ffn",
        "source",
    )
    file = tmp_path / "hidden.csv"
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, keep, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows())
        writer.writerow(
            {"id": "new", "category": "train", "model": "Foo", "device": "bar", "metric": "mfu", "value": "?"}
        )
    run = CliRunner().invoke(app, ["plan", "validate", str(file), "--rows", "--json"])
    assert run.exit_code == 0, run.output
    told = json.loads(run.output)
    assert told["rows"][-1] == told["rows"][-1] | {"row": "new", "published": None, "predicted": None, "split": "check"}
    by_name = {r["row"]: r for r in told["rows"]}
    assert by_name["mpf-t3-mixtral8x22b-mcore"]["as_printed"] == "0.463 mfu"
    assert sum(p["check_rows"] for p in told["partitions"]) > 50
    shown = CliRunner().invoke(app, ["plan", "validate", str(file), "--rows"])
    assert "more rows" not in shown.output
    assert "nar21-t1-1.7b" in shown.output
    wrong = CliRunner().invoke(app, ["plan", "validate", str(tmp_path / "none.csv")])
    assert wrong.exit_code != 0


def test_kinds_of_run_hold_every_scored_check_row_once_the_worst_first(shipped: Validation) -> None:
    kinds = next(t.rows for t in validation_sheet(shipped).tables if t.key == "misses")
    training = [s for s in shipped.scored if s.scored and s.split == "check" and s.partition.endswith("training")]
    assert sum(int(str(k["rows"])) for k in kinds) == len(training)
    means = [float(str(k["mean_error_share"])) for k in kinds]
    assert means == sorted(means, reverse=True)
    total = sum(int(str(k["rows"])) * m for k, m in zip(kinds, means, strict=True))
    assert total == pytest.approx(sum(abs(error(s)) / 100 for s in training))
