"""The architectures whose folders we read and write: their tensor names, their keys, what each can hold.

One row a family. `moesaic` is ours, for models that no other can hold: experts in some layers only, without the
norms that would make it a Qwen3.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from moesaic.errors import ModelError
from moesaic.recipe import Model


@dataclass(frozen=True)
class Family:
    """A `model_type` of transformers. Key names are those of config.json."""

    model_type: str
    architecture: str
    sparse: bool
    """Feed-forward blocks are experts behind a router, even when there is one."""
    moe: str = "mlp"
    """Name of the block of experts."""
    gate_up_down: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    """Projections of one expert."""
    qk_norm: str | None = None
    """`Model.qk_norm` of every model of the family."""
    n_experts: str = "num_experts"
    d_ff: str = "intermediate_size"
    """Keys of the number and the width of experts (dense: of the block)."""
    holds: frozenset[str] = frozenset()
    """Fields of Model that the family's config can switch: attention_bias, mlp_bias, window, norm_top_k, ..."""
    defaults: dict[str, object] = field(default_factory=dict)
    """What its keys mean when they are absent, where that is not what Model says."""


MIXTRAL_NAMES = ("w1", "w3", "w2")
FAMILIES = {
    family.model_type: family
    for family in (
        Family("llama", "LlamaForCausalLM", False, holds=frozenset({"attention_bias", "mlp_bias"})),
        Family(
            "mistral",
            "MistralForCausalLM",
            False,
            holds=frozenset({"window"}),
            defaults={"sliding_window": 4096, "num_key_value_heads": 8},
        ),
        Family(
            "qwen3",
            "Qwen3ForCausalLM",
            False,
            qk_norm="head",
            holds=frozenset({"attention_bias"}),
            defaults={"head_dim": 128, "num_key_value_heads": 32},
        ),
        Family(
            "mixtral",
            "MixtralForCausalLM",
            True,
            "block_sparse_moe",
            MIXTRAL_NAMES,
            n_experts="num_local_experts",
            holds=frozenset({"window"}),
            defaults={"num_local_experts": 8, "num_experts_per_tok": 2, "num_key_value_heads": 8, "rope_theta": 1e6},
        ),
        Family(
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            True,
            qk_norm="head",
            d_ff="moe_intermediate_size",
            holds=frozenset({"attention_bias", "window", "norm_top_k", "dense_layers"}),
            defaults={
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "norm_topk_prob": False,
                "num_key_value_heads": 4,
            },
        ),
        Family(
            "olmoe",
            "OlmoeForCausalLM",
            True,
            qk_norm="all",
            holds=frozenset({"attention_bias", "norm_top_k", "clip_qkv"}),
            defaults={"num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False},
        ),
    )
}
OURS = Family("moesaic", "MoesaicForCausalLM", True, "block_sparse_moe", MIXTRAL_NAMES)
# Why other known architectures are not read.
REFUSED = {
    "gpt_oss": "its attention sinks, clamped SwiGLU and MXFP4 weights are not computed here",
    "deepseek_v2": "its multi-head latent attention (MLA) and shared experts are not computed here",
    "deepseek_v3": "its multi-head latent attention (MLA), shared experts and grouped sigmoid routing are not "
    "computed here",
    "qwen2_moe": "its shared expert is not computed here",
    "llama4": "its chunked attention and shared expert are not computed here",
}
SWITCHES = ("attention_bias", "mlp_bias", "window", "norm_top_k", "clip_qkv", "dense_layers")


def find_family(model_type: object, where: object) -> Family:
    """The family of a config.json; `where` names the file in the ModelError."""
    if model_type == OURS.model_type:
        return OURS
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    if isinstance(model_type, str) and model_type in REFUSED:
        raise ModelError(f"{where}: model_type {model_type!r}: {REFUSED[model_type]}; known are {', '.join(FAMILIES)}")
    raise ModelError(f"{where}: model_type {model_type!r} cannot be computed here; {', '.join(FAMILIES)} can")


def family_for(model: Model) -> Family:
    """The family that other engines know and that holds all of `model`; else our own."""
    plain = Model.model_fields
    scaling = model.rope_scaling
    if scaling is not None and scaling.kind == "dynamic" and scaling.original_context != model.context:
        return OURS  # elsewhere the context is the original one
    used = {name for name in SWITCHES if getattr(model, name) != plain[name].default}
    if model.qk_norm == "all" and model.n_heads * model.head_dim != model.d_model:
        return OURS  # OLMoE's norms are as wide as the model
    sparse = bool(model.sparse_layers) or model.qk_norm == "all"
    for family in FAMILIES.values():
        if family.sparse == sparse and family.qk_norm == model.qk_norm and used <= family.holds:
            return family
    return OURS


@dataclass(frozen=True)
class Entry:
    """One tensor of a file and where it lives in a Transformer: `parameter[index]`.

    `parameter` None is a router in front of a single expert: whatever its weights, that expert's share is 1.
    """

    name: str
    parameter: str | None
    index: tuple[int, ...] = ()


def entries(config: Model, family: Family) -> Iterator[Entry]:
    """All tensors of a folder of that family, in the order of computation."""
    yield Entry("model.embed_tokens.weight", "embedding")
    for n in range(config.n_layers):
        theirs, ours = f"model.layers.{n}", f"layers.{n}"
        yield Entry(f"{theirs}.input_layernorm.weight", f"{ours}.attention_norm.weight")
        for letter in "qkvo":
            yield Entry(f"{theirs}.self_attn.{letter}_proj.weight", f"{ours}.attention.w{letter}")
            if config.attention_bias:
                yield Entry(f"{theirs}.self_attn.{letter}_proj.bias", f"{ours}.attention.b{letter}")
        for letter in "qk" if config.qk_norm else "":
            yield Entry(f"{theirs}.self_attn.{letter}_norm.weight", f"{ours}.attention.{letter}_norm.weight")
        yield Entry(f"{theirs}.post_attention_layernorm.weight", f"{ours}.experts_norm.weight")
        if family.sparse and n not in config.dense_layers:
            yield from _experts(config, family, n)
        else:
            yield from _dense(config, n)
    yield Entry("model.norm.weight", "norm.weight")
    if not config.tie_embeddings:
        yield Entry("lm_head.weight", "head")


def _experts(config: Model, family: Family, n: int) -> Iterator[Entry]:
    block, ours = f"model.layers.{n}.{family.moe}", f"layers.{n}"
    yield Entry(f"{block}.gate.weight", f"{ours}.router.weight" if config.n_experts > 1 else None)
    gate, up, down = family.gate_up_down
    for e in range(config.n_experts):
        yield Entry(f"{block}.experts.{e}.{gate}.weight", f"{ours}.experts.w_in", (e, 0))
        yield Entry(f"{block}.experts.{e}.{up}.weight", f"{ours}.experts.w_in", (e, 1))
        yield Entry(f"{block}.experts.{e}.{down}.weight", f"{ours}.experts.w_out", (e,))


def _dense(config: Model, n: int) -> Iterator[Entry]:
    block, ours = f"model.layers.{n}.mlp", f"layers.{n}.experts"
    places = (("gate_proj", "in", (0,)), ("up_proj", "in", (1,)), ("down_proj", "out", ()))
    for name, side, index in places:
        yield Entry(f"{block}.{name}.weight", f"{ours}.w_{side}", (0, *index))
        if config.mlp_bias:
            yield Entry(f"{block}.{name}.bias", f"{ours}.b_{side}", index)
