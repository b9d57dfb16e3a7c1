"""`moesaic plan serve`: what must be shown, and what is refused."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from moesaic.commands.plan import plan_app
from moesaic.errors import PlanError
from moesaic.recipe import recipe_files

GPT4 = str(recipe_files()["gpt4"])
CLUSTER = (GPT4, "--gpus", "128", "--tp", "8", "--pp", "16")


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(plan_app, ["serve", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads(result.output) if "--json" in arguments else result.output


def test_32k_on_40_gb_cards() -> None:
    out = run(*CLUSTER, "--hardware", "a100-40", "--context", "32k", "--json")
    assert (out["capacity_sequences"], out["even_capacity_sequences"]) == (58, 77)
    assert out["weights_average_gb"] == pytest.approx(28.6, abs=0.1)
    assert out["weights_heaviest_gb"] == pytest.approx(30.5, abs=0.05)
    mqa, gqa, mha = out["context_fits"]
    assert mqa["fits"] == "yes"
    assert mqa["stage_kv_gb_per_sequence"] == gqa["stage_kv_gb_per_sequence"]  # one head is replicated over eight ranks
    assert mha["kv_heads"] == 84
    assert mha["even_capacity_sequences"] == 7
    assert mha["fits"] == "no: fewer than 16 pipeline slots"
    assert (
        max(r["micro_batch_sequences"] for r in out["cost_against_batch"] if r["fits"]) * 16 <= 58 * 1.1
    )  # cached length, not full


@pytest.mark.parametrize(("hardware", "weights"), [("a100-80", "bf16"), ("h100", "bf16"), ("h100", "fp8")])
@pytest.mark.parametrize("context", ["8k", "32k"])
def test_the_described_clusters(hardware: str, weights: str, context: str) -> None:
    out = run(*CLUSTER, "--hardware", hardware, "--weights", weights, "--context", context, "--json")
    assert [s["layers"] for s in out["stages"]].count(8) == 8
    assert out["stages"][0]["layers"] == 7
    assert out["stages"][0]["of_slowest_share"] < 1
    costs = [r["output_usd_per_1k_tokens"] for r in out["cost_against_batch"]]
    assert costs == sorted(costs, reverse=True)
    assert (
        out["output_usd_per_1k_tokens"]["p10"]
        < out["output_usd_per_1k_tokens"]["p50"]
        < out["output_usd_per_1k_tokens"]["p90"]
    )
    assert out["mixed_usd_per_1k_tokens"]["p50"] < out["output_usd_per_1k_tokens"]["p50"]
    assert 0 < out["mfu_share"] < 1
    assert out["kv_copies"] == 8


def test_eight_bit_weights_halve_the_memory_and_the_price_falls() -> None:
    wide, narrow = (run(*CLUSTER, "--hardware", "h100", "--weights", w, "--json") for w in ("bf16", "fp8"))
    assert narrow["weights_average_gb"] == pytest.approx(wide["weights_average_gb"] / 2, rel=0.01)
    assert narrow["output_usd_per_1k_tokens"]["p50"] < wide["output_usd_per_1k_tokens"]["p50"]


def test_every_section_that_may_be_asked_for() -> None:
    out = run(
        *CLUSTER, "--hardware", "h100", "--weights", "fp8", "--price", "2", "--target", "0.0021", "--rate", "0.5",
        "--disaggregate", "--drafts", "4", "--against", "gpt3", "--batch", "1,16,64",
        "--first-layers", "0", "--mix", "4:1", "--json",
    )  # fmt: skip
    assert out["stages"][0]["layers"] == 0
    assert [r["micro_batch_sequences"] for r in out["cost_against_batch"]] == [1, 16, 64]
    assert out["claimed_cost_ratio"] == 3
    assert out["flops_ratio"] == pytest.approx(1.59, abs=0.01)
    assert out["flops_ratio"] * out["utilisation_ratio"] == pytest.approx(3)
    assert out["modelled_cost_ratio"] == pytest.approx(out["flops_ratio"] * out["modelled_utilisation_ratio"])
    assert 0 < out["prefill_share"] < 1
    assert out["concurrent_requests"] > 0
    assert out["speculation"][0]["speedup_ratio"] < out["speculation"][0]["textbook_speedup_ratio"]
    assert out["target_mixed_sequences"] <= out["target_output_sequences"]


def test_the_explanation_names_formula_and_inputs() -> None:
    out = run(*CLUSTER, "--hardware", "h100", "--explain")
    assert "(memory - weights - reserve) / cache of one sequence" in out.replace("\n", " ")
    assert "usd_per_gpu_hour = 2.8" in out.replace("\n", " ")


def test_too_few_sequences_for_the_pipeline_is_said_and_not_hidden() -> None:
    out = run(*CLUSTER, "--hardware", "a100-40", "--context", "256k", "--json")
    assert not any(r["fits"] for r in out["cost_against_batch"])
    assert "output_usd_per_1k_tokens" not in out
    assert any("fewer sequences fit than the 16 pipeline slots" in n for n in out["notes"])


@pytest.mark.parametrize(("source", "devices"), [("pocket", 1), ("gpt4", 64), ("llama-3-70b", 2)])
def test_without_a_layout_the_smallest_replica_that_fits_is_taken(source: str, devices: int) -> None:
    out = run(source, "--hardware", "a100-80", "--json")
    assert f": {devices} x A100" in out["title"]
    assert any("is the smallest replica, by doubling" in note for note in out["notes"])


def test_a_layout_given_in_part_is_kept() -> None:
    assert "tp 4 x pp 16" in run(GPT4, "--tp", "4", "--json")["title"]
    assert "tp 2 x pp 15" in run(GPT4, "--pp", "15", "--weights", "fp8", "--json")["title"]


def test_dollars_span_the_markets_range_and_are_missing_where_nobody_quotes_any() -> None:
    market, one = run(*CLUSTER, "--hardware", "h100", "--json"), run(*CLUSTER, "--price", "2.8", "--json")
    assert market["output_usd_per_1k_tokens"]["p50"] == pytest.approx(one["output_usd_per_1k_tokens"]["p50"])
    assert market["output_usd_per_1k_tokens"]["p90"] > one["output_usd_per_1k_tokens"]["p90"]
    assert market["step_ms"] == one["step_ms"]
    nobody = run(*CLUSTER, "--hardware", "rtx-4090", "--weights", "int8", "--json")
    assert nobody["output_usd_per_1k_tokens"] is None
    assert all(row["output_usd_per_1k_tokens"] is None for row in nobody["cost_against_batch"])
    assert nobody["step_ms"]["p50"] > 0
    assert any("No rent of GeForce" in note for note in nobody["notes"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--hardware", "a100-80", "--pp", "1"), r"weights of 458.* exceed 80 GB on stage 0; use 8-bit"),
        (("--hardware", "v100", "--tp", "1"), "fits on no number of V100 .* up to 512 with tp 1 in bf16"),
        (("--hardware", "rtx-4090", "--pp", "32", "--target", "1"), "--target 1 needs a price. No rent of GeForce"),
        (("--pp", "16", "--gpus", "100"), "no multiple of tp 8 x pp 16 x dp 1 = 128; use 128 or 256"),
        (("--pp", "16", "--batch", "500"), r"batch 500 .* does not fit: 1509 sequences .* --batch 94 or less"),
        (("--pp", "16", "--tp", "5"), "tp 5 does not divide 168 heads"),
        (("--pp", "16", "--context", "long"), "--context long: give a whole number of tokens"),
        (("--pp", "16", "--context", "-8k"), "--context -8k: give a whole number of tokens"),
        (("--pp", "16", "--mix", "8"), "mix 8: give prompt:output"),
        (("--pp", "16", "--batch", "0"), "batch 0: give whole numbers"),
        (("--pp", "16", "--batch", "x"), "batch x: give whole numbers"),
        (("--pp", "16", "--weights", "fp7"), "no weight precision 'fp7'"),
        (("--pp", "16", "--hardware", "a1000"), "no device 'a1000'"),
        (("--pp", "16", "--engine", "mine"), "no engine 'mine'"),
        (("--pp", "16", "--price", "-1"), "price -1"),
        (("--pp", "16", "--rate", "1000"), "overloaded: 1000 requests/s asked"),
        (("--pp", "16", "--rate", "0"), "rate 0: give requests per second"),
        (("--pp", "16", "--target", "0"), "target 0: give dollars"),
        (("--pp", "16", "--chunk", "0"), "chunk 0"),
        (("--pp", "16", "--drafts", "-1"), "-1 drafts: give at least 1"),
        (("--pp", "16", "--drafts", "3", "--accept", "2"), "acceptance 2"),
        (("--pp", "16", "--against", "gpt5"), "no model 'gpt5'"),
        (("--pp", "16", "--first-layers", "200"), "200 layers on the first stage: give 0 to 105"),
        (("--pp", "16", "--hardware", "a100-40", "--context", "256k", "--batch", "1"), r"not one sequence .* \(7 do\)"),
    ],
)
def test_bad_input_says_what_to_change(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        run(GPT4, *(() if "--tp" in arguments else ("--tp", "8")), "--hardware", "a100-80", *arguments)
