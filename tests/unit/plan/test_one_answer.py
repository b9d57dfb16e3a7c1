"""One question through several verbs: the same days, dollars and errors; every name of the Python API, twice."""

from pathlib import Path
from typing import Any

import pytest

from moesaic import plan
from moesaic.errors import PlanError
from moesaic.plan import compare_plan, search_plan, train_plan
from moesaic.plan.sheet import Interval, Sheet

DRAWN = 0.01  # compare gives the median of its draws, whose rates of failure lean to one side
QUESTION = {"tokens": "13T", "batch": "60M"}
SCENARIO = """
[training]
source = "gpt4"
tokens = "13T"
batch = "60M"
[money]
storage_tb = 1e-6
[[scenarios]]
name = "one"
hardware = "{hardware}"
mode = "rent"
count = {count}
{more}
"""


def compared(tmp_path: Path, hardware: str, count: int, more: str = "") -> dict[str, Any]:
    path = tmp_path / "scenarios.toml"
    path.write_text(SCENARIO.format(hardware=hardware, count=count, more=more), encoding="utf-8")
    sheet = compare_plan(path, samples=100)
    tables = {table.key: dict(table.rows[0]) for table in sheet.tables if table.rows}
    return tables["scenarios"] | tables["training"]


def middle(value: Any) -> float:
    return value.p50 if isinstance(value, Interval) else float(value)


def first(sheet: Sheet) -> dict[str, Any]:
    return next(dict(row) for table in sheet.tables if table.key == "top" for row in table.rows)


def test_search_compare_and_the_note_of_train_agree(tmp_path: Path) -> None:
    best = first(search_plan("gpt4", "h100", 8192, **QUESTION))  # type: ignore[arg-type]
    row = compared(tmp_path, "h100", 8192)
    assert middle(row["days"]) == pytest.approx(middle(best["days"]), rel=DRAWN)
    context = f" x cp {best['cp']}" if best["cp"] > 1 else ""
    assert f"tp {best['tp']} x pp {best['pp']}{context} x dp {best['dp']}" in row["layout"]
    kept = train_plan("gpt4", "h100", 8192, **QUESTION)  # type: ignore[arg-type]
    (note,) = [n for n in kept.notes if "moesaic plan search" in n]
    assert f"takes {middle(best['days']):.1f} days, not {middle(kept['days']):.1f}" in note
    assert f"tp {best['tp']} x pp {best['pp']}" in note
    assert note.endswith("moesaic plan search gpt4 --hardware h100 --gpus 8192 --tokens 13T --batch 60M")


def test_the_layout_that_search_found_costs_the_same_when_given_to_train(tmp_path: Path) -> None:
    best = first(search_plan("gpt4", "h100", 8200, price=2.0, **QUESTION))  # type: ignore[arg-type]
    degrees = {name: best[name] for name in ("tp", "pp", "cp", "ep", "etp", "micro_batch", "zero", "recompute")}
    layout = degrees | {"interleave": best["chunks"], "gradients": "fp32"}
    given = train_plan("gpt4", "h100", 8200, price=2.0, **QUESTION, **layout)
    assert middle(given["days"]) == pytest.approx(middle(best["days"]))
    assert middle(given["run_usd"]) == pytest.approx(middle(best["run_usd"]))
    more = "dollars_per_device_hour = 2.0"
    row = compared(tmp_path, "h100", 8200, more)
    assert middle(row["days"]) == pytest.approx(middle(best["days"]), rel=DRAWN)


def test_devices_that_idle_are_paid_by_every_verb(tmp_path: Path) -> None:
    sheet = train_plan("gpt4", "h100", 8200, tp=8, pp=8, price=2.0, **QUESTION)  # type: ignore[arg-type]
    assert (sheet["devices_used"], sheet["devices_asked"]) == (8192, 8200)
    assert middle(sheet["run_usd"]) == pytest.approx(8200 * 24 * middle(sheet["days"]) * 2.0)
    row = compared(tmp_path, "h100", 8200, "dollars_per_device_hour = 2.0\ntraining = { tp = 8, pp = 8 }")
    assert row["device_hours"] == pytest.approx(8200 * 24 * middle(row["days"]), rel=DRAWN)
    assert middle(row["run_usd"]) == pytest.approx(2.0 * row["device_hours"], rel=DRAWN)


@pytest.mark.parametrize("ask", [train_plan, search_plan])
def test_a_device_that_nobody_rents_out_still_gets_its_plan(ask: Any) -> None:
    sheet = ask("llama-3-8b", "rtx-4090", 64, batch="1M")
    assert middle(sheet["days"]) > 0
    assert sheet["memory_gb"] > 0
    assert any("No rent of GeForce RTX 4090" in note for note in sheet.notes)


@pytest.mark.parametrize("ask", [train_plan, search_plan])
@pytest.mark.parametrize(
    ("hardware", "precision", "said"),
    [
        ("h100", "int8", "int8 is no precision to train in; on H100 SXM 80 GB use bf16 or fp16 or fp8"),
        ("a100-80", "fp8", "A100 SXM 80 GB has no fp8; on A100 SXM 80 GB use bf16 or fp16"),
        ("v100", "bf16", "V100 SXM2 32 GB has no bf16; on V100 SXM2 32 GB use fp16"),
    ],
)
def test_training_is_offered_in_precisions_that_one_trains_in(
    ask: Any, hardware: str, precision: str, said: str
) -> None:
    with pytest.raises(PlanError, match=said):
        ask("llama-3-8b", hardware, 64, precision=precision)


def test_the_ramp_ends_with_the_step_that_the_sheet_prices() -> None:
    sheet = train_plan("gpt4", "a100-80", 24_960, price=1.0)
    last = next(list(t.rows)[-1] for t in sheet.tables if t.key == "ramp")
    assert last["micro_batches"] == sheet["micro_batches"]
    assert last["bubble_share"] == pytest.approx(sheet["bubble_share"])
    assert last["batch_tokens"] == sheet["batch_tokens"]
    days = sum(middle(r["days"]) for t in sheet.tables if t.key == "ramp" for r in t.rows)
    assert days > middle(sheet["days"])
    (note,) = [n for n in sheet.notes if "with the batch ramp" in n]
    assert f"{middle(sheet['days']):.1f} days" in note
    assert f"is {days:.1f}" in note


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"gpus": 64}, "tp, pp, cp are the recipe's layout; give --tp N --pp N --cp N"),
        ({"gpus": 64, "tp": 8, "pp": 15, "cp": 1}, "lower one of them, or give --gpus 120"),
        ({"gpus": 24_960, "zero": 2}, "use --zero 1 or 3"),
        ({"gpus": 24_960, "interleave": 8, "zero_bubble": True}, "give one of them"),
        ({"gpus": 24_960, "micro": 7}, "no option 'micro' of a training plan; known: cp, ep"),
    ],
)
def test_what_train_refuses_says_what_can_be_given(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said) as refused:
        train_plan("gpt4", "a100-80", **asked)
    assert "dp =" not in str(refused.value)


def test_each_degree_says_who_chose_it() -> None:
    sheet = train_plan("gpt4", "a100-80", 24_960, ep=8)
    how = {figure.key: figure.formula for figure in sheet.figures}
    assert (how["ep"], how["tp"], how["chunks"]) == ("given", "the recipe's layout", "the fastest that fits")
    assert "docs/" not in " ".join(how.values())
    assert "2 bytes x parameters" in how["memory_weights_gb"]


@pytest.mark.parametrize("name", sorted(plan._HOMES))
def test_every_name_of_the_api_is_a_function_also_the_second_time(name: str) -> None:
    assert callable(getattr(plan, name))
    assert callable(getattr(plan, name))
