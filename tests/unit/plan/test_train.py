"""Plans of training: the described system's numbers, what is chosen when nothing is given, and mistakes."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.cli import main
from moesaic.errors import PlanError
from moesaic.plan import train_plan
from moesaic.plan.device import device
from moesaic.plan.estimate import estimate
from moesaic.plan.shapes import read_shape
from moesaic.plan.sheet import Interval, Sheet
from moesaic.plan.stack import stack
from moesaic.plan.train import Wanted, answer, ask

# What a key ends in, by the unit of its figure.
ENDS = {
    "share": ("_share",),
    "$": ("_usd",),
    "$ per device-hour": ("_usd_per_device_hour",),
    "GB": ("_gb",),
    "TB": ("_tb",),
    "MW": ("_mw",),
    "MWh": ("_mwh",),
    "s": ("_s",),
    "d": ("days",),
    "h": ("_h", "_hours"),
    "FLOP": ("_flop",),
    "tokens": ("_tokens",),
    "tokens/s": ("tokens_per_s",),
}


def described(**changed: Any) -> Sheet:
    """The described system: 24,960 A100, TP8 x PP15, 13 T tokens, 60 M a batch."""
    asked = {"tp": 8, "pp": 15, "tokens": "13T", "batch": "60M", "price": 1.0} | changed
    return train_plan("gpt4", "a100-80", 24_960, **asked)


def rows(sheet: Sheet, key: str) -> list[Any]:
    return next(list(t.rows) for t in sheet.tables if t.key == key)


def test_one_expert_rank_fits_with_gradients_in_bf16_only_and_sixteen_with_either() -> None:
    one = {(r["gradients"], r["recompute"]): r["fits"] for r in rows(described(ep=1), "fits_by_choice")}
    assert one["bf16", "full"]
    assert not one["fp32", "full"]
    assert not one["bf16", "selective"]
    sixteen = {(r["gradients"], r["recompute"]): r["fits"] for r in rows(described(ep=16), "fits_by_choice")}
    assert sixteen["bf16", "full"]
    assert sixteen["fp32", "full"]
    assert described(ep=1)["gradient_bytes"] == 2
    assert described(ep=16)["gradient_bytes"] == 4


def test_memory_of_the_heaviest_stage_adds_up_and_is_that_of_eight_layers() -> None:
    sheet = described(ep=1)
    parts = ("weights", "gradients", "optimizer", "gathered", "activations", "logits", "reserve")
    assert sum(sheet[f"memory_{p}_gb"] for p in parts) == pytest.approx(sheet["memory_gb"])  # type: ignore[misc]
    # 8 layers of 15.27 B parameters over 8 ranks, and the vocabulary's share.
    assert 30.5 < sheet["memory_weights_gb"] < 30.9  # type: ignore[operator]


def test_bubbles_are_the_closed_forms_and_torchs_table_and_thirty_five_is_refused() -> None:
    sheet = described(ep=16)
    found = {(r["schedule"], r["chunks"], r["micro_batches"]): r for r in rows(sheet, "bubbles")}
    assert found["1f1b", 1, 35]["bubble_share"] == pytest.approx(14 / 49)
    assert found["interleaved", 8, 35]["bubble_share"] == pytest.approx(14 / 294)
    assert not found["interleaved", 8, 35]["runs_in_torch"]
    assert found["interleaved", 8, 36]["torch_table_share"] == pytest.approx(0.068, abs=5e-4)
    assert found["interleaved", 8, 30]["runs_in_megatron"]
    assert any("35 micro-batches cannot be scheduled interleaved" in n and "30 or 36" in n for n in sheet.notes)


def test_run_is_in_the_described_range() -> None:
    sheet = described(ep=16)
    mfu, days, dollars = sheet["mfu_with_failures_share"], sheet["days"], sheet["run_usd"]
    assert isinstance(mfu, Interval)
    assert isinstance(days, Interval)
    assert isinstance(dollars, Interval)
    assert mfu.p10 < 0.34 < mfu.p90  # 32 to 36 % as described
    assert days.p10 < 95 < days.p90
    assert dollars.p50 == pytest.approx(24 * 24_960 * days.p50)
    assert sheet["mtti_h"] == pytest.approx(1 / (1.97e-5 * 24_960), rel=2e-3)
    # 2.175e25 FLOP = devices x peak x MFU x time
    flop = 24_960 * 312e12 * mfu.p50 * days.p50 * 86_400
    assert flop == pytest.approx(sheet["training_flop"])


def test_utilisation_by_parameters_below_the_one_with_attention_below_the_hardwares() -> None:
    sheet = described(ep=16)
    values = [sheet[k] for k in ("mfu_share", "mfu_with_attention_share", "hfu_share")]
    assert [v.p50 for v in values] == sorted(v.p50 for v in values)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"tp": 5}, "tp"),
        ({"pp": 121}, "pp"),
        ({"ep": 7}, "ep"),
        ({"tp": 8, "pp": 15, "cp": 1000}, "needs more than 24,960 devices"),
        ({"batch": "100"}, "holds no sequence"),
        ({"batch": "1e400"}, "positive number"),
        ({"tokens": "1M"}, "less than one batch"),
        ({"tokens": "-13T"}, "--tokens -13T"),
        ({"price": -1.0}, "--price -1"),
        ({"precision": "fp8"}, "A100 SXM 80 GB has no fp8"),
        ({"stack": "nothing"}, "no stack 'nothing'; known: "),
        ({"imbalance": 0.5}, "at least the mean load"),
    ],
)
def test_impossible_questions_are_refused_in_a_line(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message) as refused:
        described(**asked)
    assert len(str(refused.value).splitlines()) <= 2


def test_an_unknown_device_lists_the_known_ones() -> None:
    with pytest.raises(PlanError, match=r"no device 'a1000'; known: .*h100"):
        train_plan("gpt4", "a1000", 8)


def test_devices_that_do_not_come_out_even_are_said() -> None:
    sheet = train_plan("gpt4", "a100-80", 25_000, tp=8, pp=15)
    assert (sheet["devices_used"], sheet["idle_devices"]) == (24_960, 40)
    assert any("24,960 or 25,200" in note for note in sheet.notes)  # 209 replicas do not hold whole groups of experts
    even = train_plan("gpt4", "a100-80", 25_000, tp=8, pp=15, ep=1)
    assert any("24,960 or 25,080" in note for note in even.notes)


@pytest.mark.parametrize(("gpus", "pp"), [(25_080, 15), (24_120, 15), (24_960, 16)])
def test_replicas_come_in_whole_groups_of_experts(gpus: int, pp: int) -> None:
    sheet = train_plan("gpt4", "a100-80", gpus, tp=8, pp=pp)
    dp = sheet["devices_used"] // (8 * pp)  # type: ignore[operator]
    assert dp * 8 % 16 == 0
    assert sheet["idle_devices"] == gpus - dp * 8 * pp
    assert sheet["idle_devices"] < 2 * 8 * pp  # type: ignore[operator]


def test_without_a_recipe_sequences_are_not_the_longest_possible() -> None:
    assert train_plan("deepseek-v3", "b200", 2048)["sequence_tokens"] == 8192
    assert train_plan("gpt3", "a100-80", 1024)["sequence_tokens"] == 2048


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(["llama-3-8b", "mixtral-8x7b", "deepseek-v3", "gpt3"]),
    gpus=st.sampled_from([8, 64, 256, 1000]),
    hardware=st.sampled_from(["a100-80", "h100", "b200"]),
    tp=st.sampled_from([1, 2, 8]),
)
def test_the_answer_is_the_fastest_of_those_that_fit(name: str, gpus: int, hardware: str, tp: int) -> None:
    wanted = Wanted(gpus=gpus, tp=tp, batch_tokens=32e6)
    asked = ask(read_shape(name), None, device(hardware), stack("megatron-core"), wanted)
    found = answer(asked)
    several = asked.layouts[:: max(1, len(asked.layouts) // 200)]
    others = [
        estimate(asked.shape, found.job, asked.device, asked.stack, several[i : i + 1]) for i in range(len(several))
    ]
    if found.fits:
        assert found.tokens / found.seconds.p50 >= max(
            (e.tokens / e.seconds.p50 for e in others if e.fits), default=0.0
        )
    else:
        assert not any(e.fits for e in others)
        assert found.bytes_needed <= min(e.bytes_needed for e in others)
    assert found.devices <= gpus
    assert 0 < found.mfu.p50 < 1


def test_recomputing_fewer_layers_is_said_where_it_would_be_faster() -> None:
    sheet = described(ep=16)
    (note,) = [n for n in sheet.notes if "of the layers in full" in n]
    seconds = float(note.split("take ")[1].split(" s a step")[0])
    assert seconds < sheet["step_time_s"].p50  # type: ignore[union-attr]
    small = train_plan("llama-3-8b", "h100", 64)
    assert not any("of the layers in full" in n for n in small.notes)


def test_more_layers_cost_more_and_a_faster_device_less() -> None:
    small, large = (train_plan(n, "h100", 512)["days"] for n in ("llama-3-8b", "llama-3-70b"))
    assert small.p50 < large.p50  # type: ignore[union-attr]
    slow, fast = (train_plan("mixtral-8x7b", d, 256, tokens="1T")["days"] for d in ("a100-80", "h100"))
    assert fast.p50 < slow.p50  # type: ignore[union-attr]


def test_intervals_hold_eighty_per_cent_of_a_log_normal() -> None:
    found = Interval.around(2.0, 0.1)
    assert found.p90 / found.p50 == pytest.approx(found.p50 / found.p10)
    assert found.p90 == pytest.approx(2.0 * 2.718281828**0.128155, rel=1e-6)


def test_the_verb_prints_json_with_units_in_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    main_ends = ["plan", "train", "gpt4", "--hardware", "a100-80", "--gpus", "24960", "--price", "1", "--json"]
    with pytest.raises(SystemExit) as end:
        main(main_ends)
    assert not end.value.code
    found = json.loads(capsys.readouterr().out)
    assert found["days"]["p10"] < found["days"]["p50"] < found["days"]["p90"]
    assert {"memory_gb", "step_time_s", "mfu_share", "run_usd", "energy_mwh", "bubbles", "ramp", "notes"} <= set(found)
    sheet = described()
    for figure in sheet.figures:
        ends = ENDS.get(figure.unit, ("",))
        assert figure.key.endswith(ends), f"{figure.key} is in {figure.unit}"
    keys = [key for table in sheet.tables for row in table.rows for key in row]
    assert not [key for key in keys if key.endswith(("percent", "pct", "dollars"))]


def test_explain_names_formula_and_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "train", "llama-3-8b", "--gpus", "64", "--explain"])
    out = capsys.readouterr().out
    assert "training FLOP / (devices at work x peak x MFU x goodput)" in out
    assert "with goodput = " in out
