"""A Hugging Face `config.json` -> Shape, for decoder-only transformers. No transformers, no network.

What a family's configs leave unsaid stands in `hf_families.py`; what the config says wins. Hybrids, encoders and
architectures with attention of other kinds are refused by name.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesaic.errors import PlanError
from moesaic.plan.hf_families import FAMILIES, KINDS, REFUSED, Bias, Family
from moesaic.plan.shape import LatentAttention, Shape

MOST_LAYERS = 10_000


class _Config:
    """Keys of a config.json, with errors that name them."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def optional(self, *keys: str) -> int | None:
        """A positive whole number under the first of `keys` that is set."""
        for key in keys:
            value = self.values.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise PlanError(f"{self.where}: {key} is {value!r}; it must be a positive whole number")
            return value
        return None

    def needed(self, *keys: str) -> int:
        value = self.optional(*keys)
        if value is None:
            raise PlanError(f"{self.where}: {' or '.join(keys)} is missing; add it to the config")
        return value

    def flag(self, key: str, otherwise: bool = False) -> bool:
        value = self.values.get(key)
        return otherwise if value is None else bool(value)


def shape_from_config(path: Path) -> Shape:
    """The shape that a config.json describes; of a model with images, its text part. Raises PlanError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PlanError(f"{path}: not a readable config.json: {error}") from error
    if not isinstance(values, dict):
        raise PlanError(f"{path}: not a model's config: the file holds no table of keys")
    name = path.parent.resolve().name if path.name == "config.json" else path.stem
    return shape_from_values(values, name, str(path))


def shape_from_values(values: Mapping[str, Any], name: str, where: str = "config") -> Shape:
    """The shape that the keys of a config.json describe. Raises PlanError that begins with `where`."""
    if isinstance(text := values.get("text_config"), dict):
        values = {"tie_word_embeddings": values.get("tie_word_embeddings"), **text}
    kind = str(values.get("model_type", ""))
    _refuse(values, kind, where)
    family, c = FAMILIES.get(kind, Family()), _Config(values, where)
    d, heads = c.needed("hidden_size", "n_embd"), c.needed("num_attention_heads", "n_head", "num_heads")
    layers = c.needed("num_hidden_layers", "n_layer", "num_layers")
    if layers > MOST_LAYERS:
        raise PlanError(f"{where}: num_hidden_layers = {layers:,}; at most {MOST_LAYERS:,} are priced")
    latent = _latent(c)
    head_dim = latent.nope_dim if latent else c.optional("head_dim") or d // heads
    kv_heads = _kv_heads(c, kind, heads)
    if heads % kv_heads:
        raise PlanError(f"{where}: num_attention_heads = {heads} is not a multiple of num_key_value_heads = {kv_heads}")
    width = c.optional("intermediate_size_mlp", "ffn_dim", "ffn_hidden_size", "n_inner", "intermediate_size")
    width = width or (4 * d if family.four_d else None)
    experts = _experts(c, kind, layers, d)
    if width is None and experts.get("dense_layers", layers):
        width = c.needed("intermediate_size")
    q, kv = heads * head_dim, kv_heads * head_dim
    norms = _norms(c, kind, family)
    bias = _attention_bias(c, kind, family)
    all_biased, ffn_biased = bias == "all", _ffn_bias(c, kind, family)
    positions = c.needed(family.positions) + family.spare_positions if family.positions else 0
    window, windowed = _window(c, family, layers)
    return Shape(
        name=name,
        n_layers=layers,
        d_model=d,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        d_ff=width or 0,
        vocab_size=c.needed("vocab_size"),
        **experts,
        ffn_matrices=family.matrices,
        tied=c.flag("tie_word_embeddings", family.tied),
        positions=positions,
        biases=all_biased and ffn_biased,
        ffn_biases=ffn_biased and not all_biased,
        norms=norms,
        norm_values=family.norm_values if kind != "cohere" else 1,
        window=window,
        windowed_layers=windowed,
        latent=latent,
        context=c.optional("max_position_embeddings", "n_positions", "seq_length") or 8192,
        parallel_block=family.parallel or c.flag("parallel_attn", kind == "falcon"),
        qk_norm=_qk_norm(c, kind, family, head_dim, heads, kv_heads),
        attention_extra=_attention_extra(c, kind, bias, ffn_biased, q, kv, d, latent),
        extra=(2 * d if family.embedding_norm else 0) + (c.needed("vocab_size") if family.head_bias else 0),
        source=f"{where}{'' if kind in FAMILIES else f'; model_type {kind!r} is unknown and read as a Llama'}",
    )


def _refuse(values: Mapping[str, Any], kind: str, where: str) -> None:
    reason = next((why for why, kinds in REFUSED.items() if kind in kinds.split()), None)
    if values.get("is_encoder_decoder"):
        reason = "an encoder"
    layers = values.get("layer_types") or values.get("layers_block_type") or ()
    if kind != "glm_moe_dsa" and (odd := sorted({str(x) for x in layers} - KINDS)):
        reason = f"layers of kind {odd[0]}"
    if kind == "opt" and values.get("word_embed_proj_dim", values.get("hidden_size")) != values.get("hidden_size"):
        reason = "an embedding narrower than the model"
    if reason:
        raise PlanError(f"{where}: model_type {kind!r} has {reason}; only plain decoder-only transformers are priced")


def _latent(c: _Config) -> LatentAttention | None:
    if c.optional("kv_lora_rank") is None:
        return None
    return LatentAttention(
        q_rank=c.optional("q_lora_rank"),
        kv_rank=c.needed("kv_lora_rank"),
        rope_dim=c.needed("qk_rope_head_dim"),
        nope_dim=c.needed("qk_nope_head_dim"),
        value_dim=c.needed("v_head_dim"),
    )


def _kv_heads(c: _Config, kind: str, heads: int) -> int:
    if kind == "falcon":
        if c.flag("new_decoder_architecture"):
            return c.optional("num_kv_heads") or heads
        return 1 if c.flag("multi_query", True) else c.optional("num_kv_heads") or heads
    if kind == "gpt_bigcode":
        return 1 if c.flag("multi_query", True) else heads
    return c.optional("num_key_value_heads", "num_kv_heads") or heads


def _experts(c: _Config, kind: str, layers: int, d: int) -> dict[str, Any]:
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = c.needed(*names) if FAMILIES.get(kind, Family()).sparse else c.optional(*names)
    if experts is None or experts == 1:
        return {}
    if (top_k := c.needed("num_experts_per_tok")) > experts:
        raise PlanError(f"{c.where}: num_experts_per_tok = {top_k} is more than the {experts} experts")
    width = c.optional("moe_intermediate_size") or c.needed("intermediate_size")
    shared = c.values.get("n_shared_experts") or 0
    own = c.optional("shared_expert_intermediate_size")
    if kind == "llama4_text":
        shared, own = 1, width
    dense = _dense_layers(c, kind, layers)
    first = dense == tuple(range(len(dense)))
    return {
        "n_experts": experts,
        "top_k": top_k,
        "d_expert": width,
        "n_shared": shared or (1 if own else 0),
        "d_shared": own or shared * width,
        "dense_layers": len(dense),
        "dense_at": () if first else dense,
        # Qwen2's shared expert has a gate of its own, gpt-oss a bias per expert.
        "router_extra": experts if kind == "gpt_oss" else d if own and kind == "qwen2_moe" else 0,
    }


def _dense_layers(c: _Config, kind: str, layers: int) -> tuple[int, ...]:
    if isinstance(kinds := c.values.get("mlp_layer_types"), list):
        return tuple(n for n, k in enumerate(kinds) if k == "dense")
    if kind == "llama4_text":
        step = c.optional("interleave_moe_layer_step") or 1
        sparse = c.values.get("moe_layers")
        sparse = set(range(step - 1, layers, step)) if sparse is None else set(sparse)
        return tuple(n for n in range(layers) if n not in sparse)
    step = c.optional("decoder_sparse_step") or 1
    only = set(c.values.get("mlp_only_layers") or ())
    first = c.values.get("first_k_dense_replace") or 0
    return tuple(n for n in range(layers) if n < first or n in only or (n + 1) % step)


def _norms(c: _Config, kind: str, family: Family) -> int:
    if kind == "falcon":
        if c.flag("new_decoder_architecture"):
            return c.optional("num_ln_in_parallel_attn") or 2
        return 1 if c.flag("parallel_attn", True) else 2
    if kind == "stablelm" and c.flag("use_parallel_residual"):
        return 1
    return family.norms


def _attention_bias(c: _Config, kind: str, family: Family) -> Bias:
    if kind == "falcon":
        return "all" if c.flag("bias") else "none"
    if kind == "starcoder2":
        return "all" if c.flag("use_bias", True) else "none"
    if kind == "opt":
        return "all" if c.flag("enable_bias", True) else "none"
    if kind in ("gpt_neox", "gpt_oss"):
        return "all" if c.flag("attention_bias", True) else "none"
    if kind == "stablelm":
        return "qkv" if c.flag("use_qkv_bias") else "none"
    if family.bias == "flag":
        return "all" if c.flag("attention_bias") else "none"
    if family.bias == "flag_qkv":
        return "qkv" if c.flag("attention_bias") else "none"
    return family.bias


def _ffn_bias(c: _Config, kind: str, family: Family) -> bool:
    if kind in ("falcon", "starcoder2", "opt"):
        return _attention_bias(c, kind, family) == "all"
    return family.ffn_bias or c.flag("mlp_bias")


def _qk_norm(c: _Config, kind: str, family: Family, head_dim: int, heads: int, kv_heads: int) -> int:
    if kind == "glm4_moe" and c.flag("use_qk_norm"):
        return 2 * head_dim
    if kind == "cohere" and c.flag("use_qk_norm"):
        return (heads + kv_heads) * head_dim
    if kind == "phi" and c.flag("qk_layernorm"):
        return 4 * head_dim
    if kind == "stablelm" and c.flag("qk_layernorm"):
        return (heads + kv_heads) * head_dim
    return {"": 0, "head": 2 * head_dim, "all": (heads + kv_heads) * head_dim}[family.qk]


def _attention_extra(
    c: _Config, kind: str, bias: Bias, ffn_biased: bool, q: int, kv: int, d: int, latent: LatentAttention | None
) -> int:
    """Biases that `Shape.biases` does not count, sinks (gpt-oss), the indexer of sparse attention (DeepSeek V3.2)."""
    extra = {"none": 0, "qkv": q + 2 * kv, "out": d, "all": 0 if ffn_biased else q + 2 * kv + d}.get(bias, 0)
    if latent and bias == "all":
        extra = (latent.q_rank or 0) + latent.kv_rank + latent.rope_dim + d
    if kind == "gpt_oss":
        extra += c.needed("num_attention_heads")
    if latent and latent.q_rank and (index_heads := c.optional("index_n_heads")):
        width = c.needed("index_head_dim")
        extra += latent.q_rank * index_heads * width + d * width + 2 * width + d * index_heads
    return extra


def _window(c: _Config, family: Family, layers: int) -> tuple[int | None, int]:
    width = next((k for k in ("sliding_window", "window_size", "attention_chunk_size") if c.values.get(k)), None)
    window = c.optional(width) if width else None  # 0 and null are none
    kinds = c.values.get("layer_types")
    if window is None or (family.window == "flag" and not c.flag("use_sliding_window")):
        return None, 0
    if isinstance(kinds, list):
        return (window, n) if (n := sum(k in ("sliding_attention", "chunked_attention") for k in kinds)) else (None, 0)
    if c.values.get("attention_chunk_size"):  # Llama 4: each fourth layer sees everything
        return window, layers - layers // 4
    if pattern := c.optional("sliding_window_pattern"):
        return window, layers - layers // pattern
    return window, -(-layers // 2) if family.window == "alternate" else layers
