"""What GGUF files call things: metadata keys, tensor names, and where rows stand in another order than ours.

The keys are those of the GGUF specification (github.com/ggml-org/ggml, docs/gguf.md) and llama.cpp's loader.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.recipe import Model


@dataclass(frozen=True)
class Architecture:
    """A `general.architecture` of llama.cpp that is read and written."""

    name: str
    qk_norm: str | None = None
    permuted: bool = False
    """Query and key rows stand in pairs (i, i + 1) per head, as llama.cpp's `llama` turns them."""
    norm_top_k: bool = True
    sparse: bool | None = None
    """Only with experts, only without, or either."""


ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture("llama", permuted=True),
        Architecture("qwen3", qk_norm="head", sparse=False),
        Architecture("qwen3moe", qk_norm="head", sparse=True),
        Architecture("olmoe", qk_norm="all", norm_top_k=False, sparse=True),
    )
}


@dataclass(frozen=True)
class GGUFEntry:
    """One tensor of the file and its place in a Transformer: `parameter[index]`, rows of `heads` heads permuted."""

    name: str
    parameter: str
    index: tuple[int | slice, ...] = ()
    heads: int | None = None


def gguf_entries(config: Model, architecture: Architecture) -> Iterator[GGUFEntry]:
    """All tensors of a file, in the order of computation."""
    yield GGUFEntry("token_embd.weight", "embedding")
    every = slice(None)
    for n in range(config.n_layers):
        theirs, ours = f"blk.{n}", f"layers.{n}"
        yield GGUFEntry(f"{theirs}.attn_norm.weight", f"{ours}.attention_norm.weight")
        heads = {"q": config.n_heads, "k": config.n_kv_heads} if architecture.permuted else {}
        for letter, name in (("q", "attn_q"), ("k", "attn_k"), ("v", "attn_v"), ("o", "attn_output")):
            yield GGUFEntry(f"{theirs}.{name}.weight", f"{ours}.attention.w{letter}", heads=heads.get(letter))
            if config.attention_bias:
                yield GGUFEntry(f"{theirs}.{name}.bias", f"{ours}.attention.b{letter}", heads=heads.get(letter))
        for letter in "qk" if config.qk_norm else "":
            yield GGUFEntry(f"{theirs}.attn_{letter}_norm.weight", f"{ours}.attention.{letter}_norm.weight")
        yield GGUFEntry(f"{theirs}.ffn_norm.weight", f"{ours}.experts_norm.weight")
        sides = (("gate", "in", 0), ("up", "in", 1), ("down", "out", None))
        if config.n_experts > 1:
            yield GGUFEntry(f"{theirs}.ffn_gate_inp.weight", f"{ours}.router.weight")
        for name, side, half in sides:
            which = () if half is None else (half,)
            if config.n_experts > 1:
                yield GGUFEntry(f"{theirs}.ffn_{name}_exps.weight", f"{ours}.experts.w_{side}", (every, *which))
                continue
            yield GGUFEntry(f"{theirs}.ffn_{name}.weight", f"{ours}.experts.w_{side}", (0, *which))
            if config.mlp_bias:
                yield GGUFEntry(f"{theirs}.ffn_{name}.bias", f"{ours}.experts.b_{side}", which)
    yield GGUFEntry("output_norm.weight", "norm.weight")
    if not config.tie_embeddings:
        yield GGUFEntry("output.weight", "head")


def to_pairs(rows: Tensor, heads: int) -> Tensor:
    """Rows of each head from halves (i, i + C/2), as Llama's weights turn, to pairs (2i, 2i + 1)."""
    pairs: Tensor = rows.unflatten(0, (heads, 2, -1)).transpose(1, 2)
    return pairs.reshape(rows.shape)


def to_halves(rows: Tensor, heads: int) -> Tensor:
    """Inverse of `to_pairs`."""
    halves: Tensor = rows.unflatten(0, (heads, -1, 2)).transpose(1, 2)
    return halves.reshape(rows.shape)


def llama3_factors(frequency_C: Tensor, plain_C: Tensor) -> Tensor:
    """Contents of `rope_freqs.weight`: by how much each frequency is divided."""
    return (plain_C / frequency_C).to(torch.float32)
