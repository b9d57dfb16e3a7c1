"""Sparse upcycling (Komatsuzaki et al. 2023): experts that begin as copies of a dense block, behind a new router.

The routing weights of a token sum to one and its experts are equal, so the model computes what it did before, up to
rounding. Key/value heads may be pooled on the way (Ainslie et al. 2023), which does change it.
"""

from collections.abc import Sequence

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from moesaic.errors import ModelError
from moesaic.interop.folder import set_parameter
from moesaic.model import Transformer
from moesaic.recipe import Model


def upcycle(
    model: Transformer,
    n_experts: int,
    top_k: int,
    *,
    layers: Sequence[int] | None = None,
    noise: float = 0.0,
    n_kv_heads: int | None = None,
    seed: int = 0,
) -> Transformer:
    """A model whose dense blocks in `layers` (None: all) became `n_experts` experts, `top_k` chosen.

    What does not change shares its memory with `model`. `noise` is the standard deviation of what is added to each
    expert, as a share of that of the weights; with 0 the logits are those of `model`. Raises ModelError.
    """
    old = model.config
    config = upcycled_shape(old, n_experts, top_k, layers, n_kv_heads)
    with torch.device("meta"):
        new = Transformer(config, model.compute_dtype)
    given = dict(model.named_parameters())
    generator = torch.Generator("cpu").manual_seed(seed)
    for name, parameter in list(new.named_parameters()):
        if name.endswith("router.weight") and name not in given:
            values = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
            values = values.normal_(0.0, config.init_std, generator=generator).to(model.embedding)
        else:
            values = given[name].detach()
            if parameter.shape != values.shape and ".experts." in name:
                values = _copies(values, n_experts, noise, generator)
            elif parameter.shape != values.shape:
                values = _pooled(values, old.n_kv_heads, config.n_kv_heads)
        set_parameter(new, name, values)
    new.use_kernels(model.kernels)
    return new


def upcycled_shape(
    model: Model, n_experts: int, top_k: int, layers: Sequence[int] | None, n_kv_heads: int | None
) -> Model:
    """The shape after upcycling. Raises ModelError when it cannot be."""
    dense = [n for n in range(model.n_layers) if model.experts_of(n) == 1]
    chosen = dense if layers is None else sorted(set(layers))
    if model.n_experts > 1 and (n_experts, top_k) != (model.n_experts, model.top_k):
        raise ModelError(
            f"the model has {model.n_experts} experts already, {model.top_k} chosen; upcycle its dense layers with "
            f"--experts {model.n_experts} --top-k {model.top_k}"
        )
    if wrong := [n for n in chosen if n not in dense]:
        raise ModelError(f"layer {wrong[0]} is not a dense layer of this model; it has {_ranges(dense) or 'none'}")
    if not chosen:
        raise ModelError("the model has no dense layer to upcycle")
    if n_experts < 2:
        raise ModelError(f"{n_experts} experts are not a mixture; use 2 or more")
    if model.mlp_bias or not model.norm_top_k or (model.dense_d_ff or model.d_ff) != model.d_ff:
        raise ModelError("biases in the block, raw routing weights or dense layers of another width cannot be upcycled")
    heads = model.n_kv_heads if n_kv_heads is None else n_kv_heads
    if heads < 1 or model.n_kv_heads % heads:
        raise ModelError(f"{model.n_kv_heads} key/value heads cannot be pooled to {heads}; use a divisor")
    if model.qk_norm == "all" and heads != model.n_kv_heads:
        raise ModelError("key/value heads that are normalised together cannot be pooled; keep them")
    values = model.model_dump() | {
        "n_experts": n_experts,
        "top_k": top_k,
        "n_kv_heads": heads,
        "dense_layers": tuple(n for n in dense if n not in chosen),
    }
    try:
        return Model.model_validate(values)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ModelError(message) from error


def layer_ranges(text: str) -> list[int]:
    """`20-29` or `0,4,8-11` as a list. Raises ModelError."""
    layers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        numbers = (first, last) if dash else (first,)
        if not all(n.isdecimal() for n in numbers) or int(numbers[-1]) < int(first):
            raise ModelError(f"--layers {text}: write layers as 20-29 or 0,4,8-11, counted from 0")
        layers += range(int(first), int(last or first) + 1)
    return layers


def expert_distance(experts: nn.Module) -> float:
    """Mean over pairs of experts of |a - b| / |mean|: 0 for copies, sqrt(2) and above for unrelated ones."""
    flat = torch.cat([w.detach().flatten(1).float() for w in experts.parameters()], dim=1)  # [experts, weights]
    centre = flat.mean(dim=0)
    pairs = torch.pdist(flat - centre)
    return float(pairs.mean() / centre.norm())


def _copies(dense: Tensor, n_experts: int, noise: float, generator: torch.Generator) -> Tensor:
    out = dense.expand(n_experts, *dense.shape[1:]).clone()
    if noise:
        for expert in out:  # one at a time, in fp32 on the CPU: the same numbers on every device
            added = torch.empty(expert.shape, dtype=torch.float32, device="cpu").normal_(generator=generator)
            expert += (noise * dense.float().std().cpu() * added).to(out)
    return out


def _pooled(rows: Tensor, old: int, new: int) -> Tensor:
    """Mean over the key (or value) heads of each new one; `[heads * width, ...]`."""
    groups: Tensor = rows.float().unflatten(0, (new, old // new, -1))
    return groups.mean(dim=1).flatten(0, 1).to(rows.dtype)


def _ranges(layers: Sequence[int]) -> str:
    starts = [n for n in layers if n - 1 not in layers]
    ends = [n for n in layers if n + 1 not in layers]
    return ", ".join(f"{a}-{b}" if a != b else str(a) for a, b in zip(starts, ends, strict=True))
