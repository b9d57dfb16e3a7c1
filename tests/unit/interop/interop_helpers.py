"""Small random models of every kind that interop reads or writes, and ways to look at them."""

from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from moesaic.model import Transformer, initialise
from moesaic.recipe import Model

BASE = {
    "vocab_size": 300,
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "head_dim": 8,
    "n_kv_heads": 2,
    "d_ff": 32,
    "n_experts": 1,
    "top_k": 1,
    "context": 64,
    "init_std": 0.2,
}
SCALINGS: tuple[dict[str, Any] | None, ...] = (
    None,
    {"kind": "linear", "factor": 2.5},
    {"kind": "yarn", "factor": 4.0, "original_context": 16},
    {"kind": "llama3", "factor": 8.0, "original_context": 8192},
)
TRAINING_ONLY = {"balance_weight", "z_weight", "balance_scope", "init_std"}


def small(seed: int = 1, **changes: Any) -> Transformer:
    """A random model whose norms and biases matter too."""
    model = Transformer(Model.model_validate(BASE | changes))
    initialise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif name.rpartition(".")[2].startswith("b"):
                parameter.normal_(0, 0.3, generator=generator)
    return model


@st.composite
def shapes(
    draw: st.DrawFn, kinds: tuple[str, ...] = ("llama", "llama-moe", "qwen3", "qwen3moe", "olmoe")
) -> dict[str, Any]:
    """Changes to `BASE`: a model of that kind which llama.cpp computes too."""
    kind = draw(st.sampled_from(kinds))
    heads = draw(st.sampled_from((1, 2, 4)))
    changes: dict[str, Any] = {
        "n_layers": draw(st.integers(1, 3)),
        "n_heads": heads,
        "n_kv_heads": draw(st.sampled_from([n for n in (1, 2, 4) if heads % n == 0])),
        "head_dim": draw(st.sampled_from((8, 10, 16))),
        "d_ff": draw(st.sampled_from((32, 40))),
        "tie_embeddings": draw(st.booleans()),
        "rope_theta": draw(st.sampled_from((10_000.0, 500_000.0, 1e6))),
        "norm_eps": draw(st.sampled_from((1e-5, 1e-6))),
        "rope_scaling": draw(st.sampled_from(SCALINGS if kind.startswith("llama") else SCALINGS[:3])),
        "qk_norm": {"qwen3": "head", "qwen3moe": "head", "olmoe": "all"}.get(kind),
    }
    if kind in ("llama-moe", "qwen3moe", "olmoe"):
        changes["n_experts"] = draw(st.sampled_from((2, 4, 8)))
        changes["top_k"] = draw(st.integers(1, 2))
    if kind.startswith("llama"):
        changes["attention_bias"] = draw(st.booleans())
        changes["mlp_bias"] = kind == "llama" and draw(st.booleans())
    if kind == "olmoe":
        changes |= {"n_kv_heads": heads, "head_dim": 32 // heads, "norm_top_k": False, "tie_embeddings": False}
    return changes


def tokens(length: int = 40, vocab_size: int = 300, rows: int = 2) -> Tensor:
    return torch.randint(0, vocab_size, (rows, length), generator=torch.Generator().manual_seed(2))


def assert_same_weights(a: Transformer, b: Transformer) -> None:
    """Bit for bit, under the same names."""
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def computed(config: Model) -> dict[str, Any]:
    """What of a shape changes the computation."""
    return config.model_dump(exclude=TRAINING_ONLY)


def state_of(folder: Path) -> dict[str, bytes]:
    """Everything below a folder: to see that nothing was changed, added or left behind."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}
