"""Every family that we read computes what transformers computes: small random models, written by transformers.

Tolerance 1e-4 on logits in fp32: sums in another order over a few layers of width up to 48.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from moesaic.interop import load_model, save_model
from moesaic.model import Cache

CONTEXT = 32
LENGTH = 44  # beyond the context, where dynamic scaling begins to act, and beyond the sliding windows
FAMILIES = ("llama", "mistral", "mixtral", "qwen3", "qwen3_moe", "olmoe")
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.5},
    "dynamic": {"factor": 3.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "yarn-full": {
        "factor": 2.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 4.0,
        "beta_slow": 0.5,
        "truncate": False,
        "mscale": 0.7,
        "mscale_all_dim": 0.4,
    },
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


@st.composite
def configs(draw: st.DrawFn, families: tuple[str, ...] = FAMILIES) -> dict[str, Any]:
    """A config.json of a small model."""
    family = draw(st.sampled_from(families))
    heads = draw(st.sampled_from((1, 2, 4, 6)))
    kv_heads = draw(st.sampled_from([n for n in (1, 2, heads) if heads % n == 0]))
    scaling = draw(st.sampled_from(sorted(SCALINGS)))
    config: dict[str, Any] = {
        "model_type": family,
        "vocab_size": draw(st.integers(17, 40)),
        "hidden_size": 12 * heads if draw(st.booleans()) else 24,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": draw(st.sampled_from((8, 10, 16))),
        "intermediate_size": draw(st.sampled_from((16, 20, 36))),
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": draw(st.booleans()),
        "rms_norm_eps": draw(st.sampled_from((1e-5, 1e-6))),
        "initializer_range": 0.2,
        "rope_parameters": {
            "rope_type": scaling.removesuffix("-full"),
            "rope_theta": draw(st.sampled_from((100.0, 10_000.0, 1e6))),
            **SCALINGS[scaling],
        },
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if draw(st.booleans()):  # as transformers 4 wrote it, and most folders have it
        table = config.pop("rope_parameters")
        config["rope_theta"] = table.pop("rope_theta")
        table["type" if draw(st.booleans()) else "rope_type"] = table.pop("rope_type")
        config["rope_scaling"] = table if scaling != "default" else None
    if config["hidden_size"] % heads:
        config["hidden_size"] = 12 * heads
    if family in ("llama", "qwen3", "qwen3_moe", "olmoe"):
        config["attention_bias"] = draw(st.booleans())
    if family == "llama":
        config["mlp_bias"] = draw(st.booleans())
    if family in ("mistral", "mixtral"):
        config["sliding_window"] = draw(st.sampled_from((None, 7, 100)))
    if family in ("mixtral", "qwen3_moe", "olmoe"):
        experts = draw(st.sampled_from((1, 8, 16, 64)))
        config["num_local_experts" if family == "mixtral" else "num_experts"] = experts
        config["num_experts_per_tok"] = draw(st.integers(1, min(experts, 4)))
    if family in ("qwen3_moe", "olmoe"):
        config["norm_topk_prob"] = draw(st.booleans())
    if family == "qwen3_moe":
        config["moe_intermediate_size"] = draw(st.sampled_from((8, 12)))
        config["mlp_only_layers"] = draw(st.sampled_from(([], [0])))
        config["use_sliding_window"] = draw(st.booleans())
        config["sliding_window"] = 9
    if family == "olmoe":
        del config["head_dim"]  # its norms are as wide as the model
        if config["hidden_size"] // heads % 2:
            config["hidden_size"] = 12 * heads
        config["clip_qkv"] = draw(st.sampled_from((None, 0.4)))
    return config


def build(config: dict[str, Any], folder: Path, **options: Any) -> PreTrainedModel:
    """A random model of that config, with norms and biases that matter, saved by transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.linspace(0.5, 1.5, parameter.numel()) - 0.6 * ("bias" in name))
            elif name.endswith("gate.weight"):
                parameter.normal_(0, 1)
    model.save_pretrained(folder, **options)
    return model.eval()


def tokens_of(config: dict[str, Any]) -> torch.Tensor:
    return torch.randint(0, config["vocab_size"], (2, LENGTH), generator=torch.Generator().manual_seed(1))


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs())
def test_logits_equal_those_of_transformers(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("m")
    theirs = build(config, folder)
    ours = load_model(folder)
    tokens = tokens_of(config)
    with torch.no_grad():
        wanted = theirs(tokens).logits
        torch.testing.assert_close(ours(tokens), wanted, rtol=0, atol=1e-4)
        # The same through the cache, in two pieces: the window and the rotary scaling know the whole length.
        cache = Cache(ours.config, 2, LENGTH, torch.float32)
        pieces = [ours.hidden(t, cache=cache, length=LENGTH)[0] for t in tokens.split((30, LENGTH - 30), dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1) @ ours.head_weight.t(), wanted, rtol=0, atol=1e-4)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs())
def test_a_folder_that_we_write_is_read_by_transformers_again(
    config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("m")
    build(config, folder)
    ours = load_model(folder)
    save_model(ours, folder / "again")
    tokens = tokens_of(config)
    with torch.no_grad():
        wanted = ours(tokens)
        assert torch.equal(load_model(folder / "again")(tokens), wanted)
        if json.loads((folder / "again/config.json").read_text())["model_type"] != "moesaic":
            theirs = AutoModelForCausalLM.from_pretrained(folder / "again", dtype=torch.float32)
            torch.testing.assert_close(theirs(tokens).logits, wanted, rtol=0, atol=1e-4)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs(("mixtral",)))
def test_gradients_equal_those_of_transformers(
    config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("m")
    theirs = build(config, folder)
    ours = load_model(folder)
    tokens = tokens_of(config)
    torch.nn.functional.cross_entropy(theirs(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    torch.nn.functional.cross_entropy(ours(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    named = dict(theirs.named_parameters())
    pairs = [(ours.embedding.grad, named["model.embed_tokens.weight"].grad)]
    for n, layer in enumerate(ours.layers):
        for letter in "qkvo":
            theirs_grad = named[f"model.layers.{n}.self_attn.{letter}_proj.weight"].grad
            pairs.append((getattr(layer.attention, f"w{letter}").grad, theirs_grad))
        block = f"model.layers.{n}.mlp"
        pairs.append((layer.experts.w_in.grad.flatten(1, 2), named[f"{block}.experts.gate_up_proj"].grad))
        pairs.append((layer.experts.w_out.grad, named[f"{block}.experts.down_proj"].grad))
        if layer.router is not None:
            pairs.append((layer.router.weight.grad, named[f"{block}.gate.weight"].grad))
    for mine, their in pairs:
        torch.testing.assert_close(mine, their, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_shards_of_transformers_are_read(family: str, tmp_path: Path) -> None:
    config = {
        "model_type": family,
        "vocab_size": 40,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 16,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.2,
        "num_local_experts" if family == "mixtral" else "num_experts": 4,
        "num_experts_per_tok": 2,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if family in ("llama", "mistral", "qwen3"):
        config = {k: v for k, v in config.items() if "experts" not in k}
    theirs = build(config, tmp_path / "m", max_shard_size="10KB")
    assert len(list((tmp_path / "m").glob("model-*.safetensors"))) > 1
    tokens = tokens_of(config)
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "m")(tokens), theirs(tokens).logits, rtol=0, atol=1e-4)
