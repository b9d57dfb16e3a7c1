"""The registry of shapes against what their makers publish, and rows of measurements against their totals."""

from pathlib import Path

import pytest

from moesaic.errors import PlanError
from moesaic.plan.shape import Shape, shape_of
from moesaic.plan.shapes import known_shapes, read_shape, shape_for_row
from moesaic.recipe import read_recipe, recipe_files


@pytest.mark.parametrize("name", list(known_shapes()))
def test_parameters_are_the_published_ones(name: str) -> None:
    known = known_shapes()[name]
    shape = known.shape
    total, *active = [b * 1e9 for b in known.published_b] or [shape.total_parameters]
    assert shape.source
    assert shape.total_parameters == pytest.approx(total, rel=0.01)
    for published in active:
        counts = [shape.active_parameters - left_out for left_out in (0, shape.embedding_parameters)]
        counts.append(counts[-1] - shape.head_parameters)
        assert min(abs(n / published - 1) for n in counts) < 0.025


def test_the_described_system() -> None:
    shape = read_shape("gpt4")
    assert (shape.total_parameters, shape.active_parameters) == (1_832_623_704_576, 278_885_730_816)
    assert shape.kv_bytes_per_token() == 61_440


@pytest.mark.parametrize("name", list(recipe_files()))
def test_a_recipe_has_the_parameters_that_the_model_has(name: str) -> None:
    model = read_recipe(name).model
    shape = shape_of(model, name)
    assert shape.total_parameters == model.parameters()
    assert shape.active_parameters == model.active_parameters


def test_biases_and_scattered_dense_layers_of_a_recipe_are_counted() -> None:
    base = read_recipe("pocket").model.model_dump()
    upcycled = type(read_recipe("pocket").model)(**base | {"dense_layers": (1, 2), "attention_bias": True})
    dense = type(upcycled)(**base | {"n_experts": 1, "top_k": 1, "mlp_bias": True, "qk_norm": "all"})
    for model in (upcycled, dense):
        assert shape_of(model, "x").total_parameters == model.parameters()
    assert [shape_of(upcycled, "x").is_sparse(n) for n in range(4)] == [True, False, False, True]


def test_no_two_shapes_share_a_name() -> None:
    names = [n.lower().replace(" ", "-") for name, k in known_shapes().items() for n in (name, *k.aliases)]
    assert len(set(names)) == len(names)


def test_latent_attention_keeps_576_values_a_token() -> None:
    assert read_shape("deepseek-v3").kv_values_per_token == 512 + 64


def test_every_second_layer_of_maverick_is_sparse() -> None:
    shape = read_shape("llama-4-maverick")
    assert [shape.is_sparse(n) for n in range(4)] == [False, True, False, True]
    assert shape.sparse_layers == sum(shape.is_sparse(n) for n in range(shape.n_layers)) == 24


# Rows as tables of measurements print them: columns that are there, and parameters in 1e9.
ROWS = [
    ("GPT 145.6B", "80,12288,96,96,49152,gelu,51200,,", 145.6),
    ("GPT 175B", "96,12288,128,128,49152,gelu,64000,,", 175),
    ("Llama 1B (nanotron)", "16,2048,32,8,8192,swiglu,128256,,", 1.236),
    ("LLaMA 65B", "80,8192,64,64,22016,swiglu,32000,,", 65.2),
    ("Custom dense 915B", "128,16384,64,16,131072,,,,", 915),
    ("Custom Mixtral-like MoE 700B", "72,8192,32,8,24576,,,16,2", 708),
    ("Custom Mixtral-like MoE 700B", "56,8192,128,8,32768,,,16,2", 754),
    ("DeepSeek-R1", "61,7168,128,MLA,2048,swiglu,129280,256,8", 671),
    ("DeepSeek-V2", ",,,MLA,,,,,6", 235.7),
    ("GPT-OSS 120B", "36,2880,64,8,2880,swiglu,201088,128,4", 116.8),
    ("Qwen3-32B", ",,,,,,,,", 32.8),
    ("Nemotron-340B", ",,,,,,,,", 341),
    ("LLaMA-2 13B", ",,,,,,,,", 13),
]
KEYS = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_ff", "ffn", "vocab", "n_experts", "top_k")


def row(model: str, columns: str) -> dict[str, str]:
    return {"model": model, **dict(zip(KEYS, columns.split(","), strict=True))}


@pytest.mark.parametrize(("model", "columns", "billions"), ROWS)
def test_a_row_of_measurements_has_its_published_total(model: str, columns: str, billions: float) -> None:
    shape = shape_for_row(row(model, columns) | {"params_b": str(billions)})
    assert shape is not None
    assert shape.total_parameters == pytest.approx(billions * 1e9, rel=0.01)


@pytest.mark.parametrize("model", ["Qwen3-Next-80B-A3B", "Qwen3.5-397B-A17B", "Nemotron-3-Nano-30B-A3B", "no such"])
def test_rows_that_are_no_plain_transformer_have_no_shape(model: str) -> None:
    columns = "60,4096,32,2,1024,,248320,512,10" if model != "no such" else ",,,,,,,,"
    assert shape_for_row(row(model, columns)) is None


def test_a_row_that_contradicts_its_name_is_taken_by_its_columns() -> None:
    shape = shape_for_row(row("GPT-3 175B", "12,768,12,12,3072,gelu,50257,,"))
    assert shape is not None
    assert shape.total_parameters < 2e8


@pytest.mark.parametrize("source", ["LLAMA-3 70B", "llama_3_70b", "Llama-3.3-70B"])
def test_names_are_read_in_any_spelling(source: str) -> None:
    assert read_shape(source) is known_shapes()["llama-3-70b"].shape


def test_sources_that_are_not_there_are_short_errors(tmp_path: Path) -> None:
    for source, words in (
        ("gpt5", "no model 'gpt5'; recipes: "),
        ("nowhere/config.json", "no file nowhere/config.json"),
        (str(tmp_path), "holds no config.json"),
    ):
        with pytest.raises(PlanError, match=words):
            read_shape(source)


def test_a_recipe_file_is_a_source() -> None:
    assert isinstance(read_shape(str(recipe_files()["pocket"])), Shape)
