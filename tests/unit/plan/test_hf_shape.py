"""Parameter counts from a config.json against those of transformers' own models, built without memory."""

import json
from pathlib import Path
from typing import Any

import pytest

from moesaic.errors import PlanError
from moesaic.plan.hf_shape import shape_from_values
from moesaic.plan.shapes import read_shape

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LLAMA = {
    "hidden_size": 96,
    "intermediate_size": 176,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "vocab_size": 311,
    "max_position_embeddings": 128,
}
HEADS = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
OLD = {k: v for k, v in HEADS.items() if k != "intermediate_size"}
GPT = {"n_embd": 96, "n_layer": 5, "n_head": 6, "vocab_size": 311, "n_positions": 64}
WIDE = {"head_dim": 32}
MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
ROUTED = {
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_nextn_predict_layers": 0,
}
LATENT = ROUTED | {
    "num_key_value_heads": 6,
    "kv_lora_rank": 24,
    "q_lora_rank": 40,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 20,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", LLAMA),
    ("llama", LLAMA | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ("llama", LLAMA | {"mlp_bias": True, "head_dim": 20}),
    ("llama", LLAMA | {"attention_bias": True}),
    ("mistral", LLAMA | WIDE),
    ("mixtral", LLAMA | {"num_local_experts": 5, "num_experts_per_tok": 2}),
    ("qwen2", LLAMA),
    ("qwen2_moe", LLAMA | MOE | {"shared_expert_intermediate_size": 80, "decoder_sparse_step": 2}),
    ("qwen2_moe", LLAMA | MOE | {"shared_expert_intermediate_size": 80, "mlp_only_layers": [0, 3]}),
    ("qwen3", LLAMA | WIDE),
    ("qwen3_moe", LLAMA | WIDE | MOE | {"mlp_only_layers": [1]}),
    ("olmo", LLAMA),
    ("olmo2", LLAMA),
    ("olmoe", LLAMA | {"num_experts": 6, "num_experts_per_tok": 2}),
    ("granite", LLAMA),
    ("smollm3", LLAMA | {"pad_token_id": 0}),
    ("phi3", LLAMA | {"pad_token_id": 0}),
    ("phi", LLAMA),
    ("phi", LLAMA | {"qk_layernorm": True}),
    ("gemma", LLAMA | WIDE),
    ("gemma2", LLAMA | WIDE),
    ("gemma3_text", LLAMA | WIDE),
    ("deepseek_v2", LLAMA | LATENT),
    ("deepseek_v3", LLAMA | LATENT),
    ("deepseek_v3", LLAMA | LATENT | {"q_lora_rank": None}),
    ("glm4_moe", LLAMA | ROUTED | {"head_dim": 32, "attention_bias": True, "use_qk_norm": True}),
    ("minimax_m2", LLAMA | WIDE | {"num_local_experts": 6, "num_experts_per_tok": 2}),
    ("gpt_oss", LLAMA | WIDE | {"num_local_experts": 6, "num_experts_per_tok": 2}),
    ("llama4_text", LLAMA | {"num_local_experts": 6, "interleave_moe_layer_step": 2, "intermediate_size_mlp": 200}),
    ("nemotron", LLAMA),
    ("starcoder2", LLAMA),
    ("stablelm", LLAMA),
    ("stablelm", LLAMA | {"use_qkv_bias": True, "use_parallel_residual": True, "qk_layernorm": True}),
    ("cohere", LLAMA),
    ("gpt2", GPT),
    ("gpt2", GPT | {"n_inner": 100}),
    ("gpt_bigcode", GPT),
    (
        "gpt_neo",
        {"hidden_size": 96, "num_layers": 4, "num_heads": 6, "vocab_size": 311, "max_position_embeddings": 64}
        | {"attention_types": [[["global", "local"], 2]]},
    ),
    ("gpt_neox", HEADS),
    ("gptj", GPT | {"rotary_dim": 8}),
    ("opt", OLD | {"ffn_dim": 176, "word_embed_proj_dim": 96}),
    ("bloom", {"hidden_size": 96, "n_layer": 5, "n_head": 6, "vocab_size": 311}),
    ("falcon", OLD),
    ("falcon", OLD | {"ffn_hidden_size": 200}),
    ("falcon", OLD | {"new_decoder_architecture": True, "num_kv_heads": 3}),
    ("falcon", OLD | {"bias": True, "multi_query": False, "parallel_attn": False, "alibi": True}),
]


def count(kind: str, values: dict[str, Any]) -> int:
    config = transformers.AutoConfig.for_model(kind, **values)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("kind", "values"), CASES, ids=[f"{n}-{kind}" for n, (kind, _) in enumerate(CASES)])
def test_parameters_are_those_of_transformers(kind: str, values: dict[str, Any]) -> None:
    saved = json.loads(transformers.AutoConfig.for_model(kind, **values).to_json_string())
    assert shape_from_values(saved, kind).total_parameters == count(kind, values)


def test_the_models_of_the_registry_are_those_of_their_configs(tmp_path: Path) -> None:
    values = LATENT | {
        "model_type": "deepseek_v3",
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "vocab_size": 129280,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    ours, theirs = read_shape(tmp_path), read_shape("deepseek-v3")
    assert ours.total_parameters == theirs.total_parameters
    assert ours.active_parameters == theirs.active_parameters


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_missing_field_is_named(key: str) -> None:
    values = {k: v for k, v in LLAMA.items() if k != key} | {"model_type": "llama"}
    with pytest.raises(PlanError, match=f"^config: .*{key}.* is missing"):
        shape_from_values(values, "x")


def test_a_missing_width_and_a_missing_top_k_are_named() -> None:
    with pytest.raises(PlanError, match="intermediate_size is missing"):
        shape_from_values({k: v for k, v in LLAMA.items() if k != "intermediate_size"}, "x")
    with pytest.raises(PlanError, match="num_experts_per_tok is missing"):
        shape_from_values(LLAMA | {"model_type": "mixtral", "num_local_experts": 8}, "x")


@pytest.mark.parametrize("bad", [-1, 0, "96", 1.5, True, [96]])
def test_numbers_that_are_none_are_named(bad: object) -> None:
    with pytest.raises(PlanError, match=r"hidden_size is .*; it must be a positive whole number"):
        shape_from_values(LLAMA | {"hidden_size": bad}, "x")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "mamba2"}, "'mamba2' has state spaces"),
        ({"model_type": "qwen3_next"}, "'qwen3_next' has state spaces or linear attention"),
        ({"model_type": "t5"}, "'t5' has an encoder"),
        ({"model_type": "new", "is_encoder_decoder": True}, "'new' has an encoder"),
        ({"model_type": "gemma4_text"}, "differ from layer to layer"),
        ({"model_type": "new", "layer_types": ["full_attention", "linear_attention"]}, "layers of kind linear_att"),
        ({"model_type": "opt", "word_embed_proj_dim": 48}, "narrower"),
    ],
)
def test_what_is_no_plain_decoder_is_refused_by_name(values: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        shape_from_values(LLAMA | values, "x")


def test_an_unknown_family_is_read_as_a_llama_and_says_so() -> None:
    shape = shape_from_values(LLAMA | {"model_type": "brand_new"}, "x")
    assert shape.total_parameters == shape_from_values(LLAMA | {"model_type": "llama"}, "x").total_parameters
    assert "'brand_new' is unknown" in shape.source


def test_the_text_part_of_a_model_with_images_is_priced() -> None:
    nested = {"model_type": "llava", "tie_word_embeddings": False, "text_config": LLAMA | {"model_type": "llama"}}
    plain = LLAMA | {"model_type": "llama", "tie_word_embeddings": False}
    assert shape_from_values(nested, "x") == shape_from_values(plain, "x")


@pytest.mark.parametrize("text", ["", "[]", "{", "3"])
def test_files_that_are_no_config_are_short_errors(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(PlanError, match=r"config\.json: not a"):
        read_shape(tmp_path)


def test_windows() -> None:
    gemma = shape_from_values(LLAMA | {"model_type": "gemma2", "sliding_window": 64}, "x")
    assert (gemma.window, gemma.windowed_layers) == (64, 3)
    qwen = shape_from_values(LLAMA | {"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": False}, "x")
    assert (qwen.window, qwen.windowed_layers) == (None, 0)
    mistral = shape_from_values(LLAMA | {"model_type": "mistral", "sliding_window": 64}, "x")
    assert (mistral.window, mistral.windowed_layers) == (64, 5)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "mixtral"}, "num_local_experts"),
        ({"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 8}, "8 is more than the 4 experts"),
        ({"num_hidden_layers": 10**12}, "at most 10,000"),
    ],
)
def test_experts_that_are_missing_or_too_few_and_endless_layers_are_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        shape_from_values(LLAMA | values, "odd", "config.json")


def test_a_head_is_its_own_where_the_family_says_so() -> None:
    """transformers' LlamaConfig has a head of its own by default, its GemmaConfig does not."""
    silent = {k: v for k, v in LLAMA.items() if k != "tie_word_embeddings"}
    assert not shape_from_values(silent, "llama", "config.json").tied
    assert shape_from_values(silent | {"model_type": "gemma"}, "gemma", "config.json").tied
