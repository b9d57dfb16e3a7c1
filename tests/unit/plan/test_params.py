"""`moesaic plan params`: the described system's figures, stages, the dense twin, and the vision addition."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from moesaic.commands.plan import plan_app
from moesaic.errors import PlanError
from moesaic.plan.params import params_sheet
from moesaic.plan.shape import Shape
from moesaic.plan.shapes import known_shapes, read_shape
from moesaic.plan.stages import dense_twin, stage_loads
from moesaic.plan.vision import ENCODERS, VisionPlan
from moesaic.recipe import recipe_files

GPT4 = str(recipe_files()["gpt4"])


def run(*arguments: str) -> Any:
    # `params` is a verb beside others; with the app's help alone Typer would fold a single verb.
    result = CliRunner().invoke(
        plan_app, ["params", *arguments] if len(plan_app.registered_commands) > 1 else arguments
    )
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads(result.output) if "--json" in arguments else result.output


def test_the_described_system() -> None:
    out = run(GPT4, "--json")
    assert round(out["total_parameters"] / 1e9, 1) == 1832.6
    assert round(out["active_parameters"] / 1e9, 1) == 278.9
    assert round(out["forward_gflop_per_token"], 1) == 557.8
    assert out["kv_bytes_per_token"] == 61_440
    assert out["per_expert_parameters"] == 120 * 3 * 10_752 * 28_672  # about 111 B
    assert out["attention_parameters"] / 1e9 == pytest.approx(55.8, abs=0.1)  # about 55 B, shared
    assert out["pipeline_stages"] == 15
    assert out["heaviest_stage_parameters"] * 2 / 8 / 1e9 == pytest.approx(30.5, abs=0.3)  # GB a device under TP8
    twin, gpt3 = out["beside"][1], out["beside"][2]
    assert twin["forward_gflop_per_token"] / 1e3 == pytest.approx(3.66, abs=0.01)  # "3,700 TFLOP", rightly 3.7 TFLOP
    assert gpt3["total_b"] == pytest.approx(174.6, abs=0.1)
    assert out["beside"][0]["total_over_gpt3"] == pytest.approx(10.5, abs=0.01)
    assert out["beside"][0]["active_over_gpt3"] == pytest.approx(1.6, abs=0.01)
    last = [b for b in out["batches"] if b["stage"] == "pretrain"][-1]
    assert last["batch_sequences"] == 7280
    assert last["batch_tokens_per_expert"] == pytest.approx(7.5e6, rel=0.01)


def test_parts_add_up_to_the_total() -> None:
    out = run("deepseek-v3", "--json")
    experts = 256 * out["per_expert_parameters"] + out["shared_expert_parameters"] + out["dense_block_parameters"]
    rest = out["attention_parameters"] + out["router_parameters"] + out["embedding_parameters"] + out["head_parameters"]
    norms = (2 * 61 + 1) * 7168
    assert experts + rest + norms == out["total_parameters"]


@pytest.mark.parametrize("source", ["gpt3", "mixtral-8x7b", "gpt-oss-120b", "pocket"])
def test_every_kind_of_model_prints_as_tables_with_formulas(source: str) -> None:
    text = run(source, "--explain", "--vision", "--vision-every", "2")
    assert "GPT-3" in text
    assert "top_k experts a layer" in text


def test_overrides_change_a_recipe_only() -> None:
    half = run(GPT4, "--json", "--set", "model.n_experts=8", "--set", "layout.ep=8")
    assert half["total_parameters"] < 0.6 * 1_832_623_704_576
    with pytest.raises(PlanError, match="gpt3 is no recipe"):
        run("gpt3", "--set", "model.n_experts=8")


@given(st.sampled_from(sorted(known_shapes())), st.data())
def test_stages_hold_the_model(name: str, data: st.DataObject) -> None:
    shape = known_shapes()[name].shape
    pp = data.draw(st.integers(1, shape.n_layers))
    loads = stage_loads(shape, pp)
    copy = shape.vocab_size * shape.d_model if shape.tied and pp > 1 else 0
    assert sum(load.layers for load in loads) == shape.n_layers
    assert sum(load.parameters for load in loads) == shape.total_parameters + copy
    assert max(load.layers for load in loads) - min(load.layers for load in loads) <= 1
    assert loads[-1].layers == min(load.layers for load in loads)  # it holds the head: never more than another


def test_sixteen_stages_of_120_layers_still_have_one_of_eight() -> None:
    loads = stage_loads(read_shape("gpt4"), 16)
    assert sorted(load.layers for load in loads) == [7] * 8 + [8] * 8
    assert loads[0].layers == 7


@given(st.sampled_from(sorted(known_shapes())))
def test_the_dense_twin_is_as_large_and_all_active(name: str) -> None:
    shape = known_shapes()[name].shape
    twin = dense_twin(shape)
    assert twin.total_parameters == twin.active_parameters
    assert twin.total_parameters == pytest.approx(shape.total_parameters, rel=2e-3)


def test_a_config_json_is_a_source(tmp_path: Path) -> None:
    values = {"model_type": "new_kind", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(values | {"intermediate_size": 128, "vocab_size": 99}))
    out = run(str(tmp_path), "--json", "--seq-len", "512")
    assert out["total_parameters"] == read_shape(tmp_path).total_parameters
    assert out["sequence_length_tokens"] == 512
    assert "read as a Llama" in out["notes"][0]


def test_a_pipeline_longer_than_the_model_is_a_short_error() -> None:
    with pytest.raises(PlanError, match="pp = 121 stages for 120 layers; use 1 to 120"):
        run(GPT4, "--pp", "121")


def test_a_window_shortens_the_cache() -> None:
    narrow = params_sheet(read_shape("gpt-oss-20b"), 1024)
    wide = narrow["kv_bytes_per_token"] * 1024 / 1e9  # type: ignore[operator]
    assert narrow["kv_gb_per_sequence"] == pytest.approx(wide * (128 + 1024) / 2048)


def test_vision_costs_what_the_description_implies() -> None:
    out = run(GPT4, "--json", "--vision")
    assert out["vision_training_flop"] == pytest.approx(3.3e24, rel=0.02)
    rows = {row["trained"].split(",")[0]: row for row in out["vision_training"][:1]}
    assert rows["decoder alone"]["share_of_pretraining"] == pytest.approx(0.155, abs=0.002)  # 2 T of 13 T
    flops = [row["flop"] for row in out["vision_training"]]
    assert flops[1] > flops[0] > flops[2] > flops[3]


@pytest.mark.parametrize(
    ("name", "billions"),
    [("vit-l", 0.304), ("vit-h", 0.632), ("vit-bigg", 1.84), ("eva-02-e", 4.35), ("vit-22b", 21.7)],
)
def test_encoders_have_their_published_size(name: str, billions: float) -> None:
    assert ENCODERS[name].parameters(224) / 1e9 == pytest.approx(billions, rel=0.015)


def test_flamingo_80b() -> None:
    """Alayrac et al. 2022, table 1: 10 B in gated layers, one every 7 of Chinchilla's 80; the resampler has 194 M."""
    chinchilla = Shape("chinchilla", 80, 8192, 64, 64, 128, 32768, 32000, ffn_matrices=2)
    plan = VisionPlan(every=7, latents=64)
    assert plan.layers(chinchilla) == 12
    assert plan.layers(chinchilla) * plan.layer_parameters(chinchilla) / 1e9 == pytest.approx(10, rel=0.2)
    assert plan.resampler_parameters() / 1e6 == pytest.approx(194, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--vision-encoder", "resnet"), "no image encoder 'resnet'; use one of vit-l"),
        (("--pixels", "450"), "450 pixels is not whole patches of 14; use 448"),
        (("--vision-every", "500"), "every 500 layers of 120"),
        (("--vision-tokens", "-2T"), "give a positive number"),
    ],
)
def test_bad_vision_is_a_short_error(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        run(GPT4, "--vision", *arguments)
