"""The model folder: what other engines read equals what we compute, and nothing damaged is ever loaded."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from moesaic.errors import ModelError
from moesaic.interop import load_model, save_model
from moesaic.model import Transformer, initialise
from moesaic.recipe import Model

# name -> what differs: multi-query, grouped, multi-head; tied or not; a head width of its own; experts
SHAPES = {
    "mqa-16": {"n_kv_heads": 1, "n_experts": 16},
    "gqa-4-untied": {"n_kv_heads": 2, "n_experts": 4, "tie_embeddings": False, "rope_theta": 50_000.0},
    "mha-dense": {"n_kv_heads": 4, "n_experts": 1, "top_k": 1},
    "mqa-dense-wide-untied": {"n_experts": 1, "top_k": 1, "head_dim": 24, "tie_embeddings": False},
    "mha-4-wide-top1": {"n_kv_heads": 4, "n_experts": 4, "top_k": 1, "head_dim": 32},
}


def build(**changes: object) -> Transformer:
    values = {
        "vocab_size": 97,
        "d_model": 64,
        "n_layers": 2,
        "n_heads": 4,
        "head_dim": 16,
        "d_ff": 48,
        "context": 128,
    }
    model = Transformer(Model.model_validate(values | changes))
    initialise(model, seed=3)
    with torch.no_grad():  # wide enough that routing and attention matter, and norms that are not all ones
        for name, parameter in model.named_parameters():
            parameter.mul_(torch.linspace(0.5, 1.5, parameter.numel()).view_as(parameter)) if "norm" in name else None
            parameter.mul_(1 if "norm" in name else 8)
    return model


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_computes_the_same_logits(name: str, tmp_path: Path) -> None:
    model = build(**SHAPES[name])
    save_model(model, tmp_path / "m")
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32, output_loading_info=True)
    assert type(theirs).__name__ == ("LlamaForCausalLM" if "dense" in name else "MixtralForCausalLM")
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens = torch.randint(0, 97, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("shard_bytes", [5e9, 20_000])
def test_round_trip_is_bit_equal(name: str, shard_bytes: float, tmp_path: Path) -> None:
    model = build(**SHAPES[name], z_weight=0.5, balance_scope="previous_batch", balance_weight=0.25)
    save_model(model, tmp_path / "m", shard_bytes=shard_bytes)
    again = load_model(tmp_path / "m")
    assert again.config == model.config
    assert (tmp_path / "m" / "model.safetensors.index.json").exists() == (shard_bytes < 5e9)
    for ours, theirs in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert ours[0] == theirs[0]
        assert torch.equal(ours[1], theirs[1])


def test_shards_stay_under_the_limit_and_transformers_reads_them(tmp_path: Path) -> None:
    model = build()
    save_model(model, tmp_path / "m", shard_bytes=100_000)
    shards = list((tmp_path / "m").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert max(p.stat().st_size for p in shards) < 110_000  # with its header
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    tokens = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=0, atol=1e-4)


def test_bf16_storage_and_the_dtypes_asked_for(tmp_path: Path) -> None:
    model = build()
    save_model(model, tmp_path / "m", dtype=torch.bfloat16)
    assert json.loads((tmp_path / "m/config.json").read_text())["torch_dtype"] == "bfloat16"
    stored = load_model(tmp_path / "m")
    assert stored.embedding.dtype == stored.compute_dtype == torch.bfloat16
    wide = load_model(tmp_path / "m", dtype=torch.float32, compute_dtype=torch.bfloat16)
    assert (wide.embedding.dtype, wide.compute_dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(wide.layers[1].experts.w_out, model.layers[1].experts.w_out.bfloat16().float())


def test_tokenizer_card_and_stop_ids_come_along(tmp_path: Path) -> None:
    words = tmp_path / "tok"
    words.mkdir()
    added = [{"id": 0, "content": "<|endoftext|>"}, {"id": 2, "content": "<|im_end|>"}]
    (words / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 4}}, "added_tokens": added}))
    (words / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    (words / "chat_template.jinja").write_text("{{ messages }}")
    save_model(build(), tmp_path / "m", tokenizer_folder=words, card="# Card\n")
    out = tmp_path / "m"
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [2, 0]
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == [2, 0]
    assert (out / "README.md").read_text() == "# Card\n"
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"


def test_config_says_what_other_engines_need(tmp_path: Path) -> None:
    save_model(build(n_kv_heads=1, rope_theta=1e6), tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 1e6}
    assert config["rope_theta"] == 1e6
    assert config["head_dim"] == 16
    assert config["sliding_window"] is None
    assert config["max_position_embeddings"] == 128
    assert config["num_local_experts"] == 16


def test_saving_replaces_a_folder_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    save_model(build(), tmp_path / "m")
    (tmp_path / "m/stale").write_text("old")
    save_model(build(n_experts=4), tmp_path / "m")
    assert load_model(tmp_path / "m").config.n_experts == 4
    assert not (tmp_path / "m/stale").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_everyone_may_read_the_folder(tmp_path: Path) -> None:
    """What serves a model is often another user than the one who trained it."""
    save_model(build(), tmp_path / "m", card="# card")
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o755
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "m").iterdir()} == {0o644}


def test_a_failed_save_keeps_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(build(), tmp_path / "m")
    before = (tmp_path / "m/model.safetensors").read_bytes()

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("moesaic.interop.folder.save_file", full)
    with pytest.raises(ModelError, match="No space left on device; free some space"):
        save_model(build(n_experts=4), tmp_path / "m")
    assert (tmp_path / "m/model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(build(n_experts=4), tmp_path / "m")
    return tmp_path / "m"


def edit_weights(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(name, None)
    save_file(tensors | ({} if tensor is None else {name: tensor}), folder / "model.safetensors")


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


W2 = "model.layers.1.block_sparse_moe.experts.3.w2.weight"


def test_missing_tensor_is_named(folder: Path) -> None:
    edit_weights(folder, W2, None)
    with pytest.raises(ModelError, match=rf"{W2}' is missing"):
        load_model(folder)


def test_wrong_shape_names_file_tensor_and_both_shapes(folder: Path) -> None:
    edit_weights(folder, W2, torch.zeros(64, 47))
    with pytest.raises(ModelError, match=rf"model.safetensors: tensor '{W2}' is \[64, 47\].*\[64, 48\]"):
        load_model(folder)


def test_a_transposed_tensor_is_refused(folder: Path) -> None:
    edit_weights(folder, W2, torch.zeros(48, 64))
    with pytest.raises(ModelError, match=r"is \[48, 64\].*\[64, 48\]"):
        load_model(folder)


def test_a_tensor_without_a_place_is_refused(folder: Path) -> None:
    edit_weights(folder, "model.layers.0.self_attn.q_proj.bias", torch.zeros(64))
    with pytest.raises(ModelError, match=r"q_proj\.bias' has no place"):
        load_model(folder)


def test_integer_weights_are_refused(folder: Path) -> None:
    edit_weights(folder, W2, torch.zeros(64, 48, dtype=torch.int8))
    with pytest.raises(ModelError, match=r"stored as torch\.int8"):
        load_model(folder)


@pytest.mark.parametrize("keep", [4, 100, 20_000, -1])
def test_truncated_file_is_named(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model.safetensors is truncated or damaged"):
        load_model(folder)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    save_model(build(), tmp_path / "m", shard_bytes=100_000)
    shard = sorted((tmp_path / "m").glob("model-*"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=shard.name):
        load_model(tmp_path / "m")


def test_pickles_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model.bin is a pickle.*convert it to safetensors"):
        load_model(folder)


def test_an_index_may_not_point_outside(folder: Path) -> None:
    index = {"weight_map": {W2: "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="lies outside the folder"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_bias": True}, "attention_bias = True is not computed for mixtral"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"norm_topk_prob": False}, "norm_topk_prob = False"),
        ({"clip_qkv": 8.0}, "clip_qkv = 8.0"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"num_experts": 5}, "num_experts and num_local_experts differ"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}, "auto_map names code"),
        ({"rope_scaling": {"type": "yarn"}}, "differ in the type"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0}}, "'yarn': factor"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "rope_type 'longrope'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "beta_fast": 3}}, "beta_fast = 3"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"model_type": "gpt_oss"}, "attention sinks"),
        ({"model_type": "deepseek_v3"}, "(MLA)"),
        ({"rope_theta": 5.0}, "differ"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"logit_scale": 2.0}, "unknown key logit_scale"),
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"num_key_value_heads": 3}, "n_kv_heads = 3"),
        ({"num_hidden_layers": 3}, "layers.2"),
        ({"num_hidden_layers": 10**9}, "layers.2"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers = '2' is not a whole number"),
        ({"intermediate_size": 10**12}, "[1000000000000, 64]"),
        ({"num_local_experts": [4]}, "num_local_experts = [4] is not a whole number"),
        ({"rope_theta": "10k"}, "rope_theta = '10k' is not a number"),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, "rope_type = ['yarn'] of the rotary scaling"),
        ({"layer_types": True}, "layer_types = True is not a list"),
        ({"moesaic": 3}, "moesaic = 3 is not a table"),
    ],
)
def test_a_config_that_we_cannot_honour_is_refused_by_name(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ModelError) as error:
        load_model(folder)
    assert message in str(error.value)


def test_a_window_as_long_as_the_context_changes_nothing(folder: Path) -> None:
    edit_config(folder, sliding_window=128, use_cache=True, some_flag=False)
    assert load_model(folder).config.context == 128


def test_folders_that_are_not_models_say_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        load_model(tmp_path)


def test_a_model_without_weights_is_not_written(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = Transformer(build().config)
    with pytest.raises(ModelError, match="no weights yet"):
        save_model(model, tmp_path / "m")
    assert not list(tmp_path.iterdir())
