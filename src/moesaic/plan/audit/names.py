"""Quantities that every claims file may use by name: computed from a recipe and from the datasheets of devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesaic.plan.device import devices
from moesaic.plan.shape import shape_of

if TYPE_CHECKING:
    from moesaic.recipe import Recipe


def recipe_names(recipe: Recipe) -> dict[str, str]:
    """Name -> expression with its unit. Sizes of the model are pure numbers, parameters and tokens carry units."""
    shape = shape_of(recipe.model, recipe.name)
    stage, layout = recipe.stages[0], recipe.layout
    names = {
        "total_parameters": f"{shape.total_parameters} parameter",
        "active_parameters": f"{shape.active_parameters} parameter",
        "attention_parameters": f"{shape.n_layers * shape.attention_parameters} parameter",  # over all layers
        "kv_bytes_per_token": f"{shape.kv_bytes_per_token():.0f} byte/token",  # 16-bit, before replication
        "training_tokens": f"{stage.tokens} token",  # of the first stage
        "batch_tokens": f"{stage.batch[-1].tokens} token",  # after its ramp
        "gpus": f"{layout.tp * layout.pp * layout.dp} GPU",
    }
    if shape.n_experts > 1:  # one expert in every sparse layer together
        names["expert_parameters"] = f"{shape.sparse_layers * shape.block_parameters(shape.d_expert)} parameter"
    sizes = ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "vocab_size", "n_experts", "top_k", "context")
    names |= {size: str(getattr(shape, size)) for size in sizes}
    names["d_ff"] = str(recipe.model.d_ff)
    return names | {axis: str(getattr(layout, axis)) for axis in ("tp", "pp", "dp", "ep")}


def device_names() -> dict[str, str]:
    """Name -> expression: `a100_80_memory`, `a100_80_bandwidth`, `h100_bf16`, `h100_fp8` (peaks), `h100_domain`."""
    names = {}
    for name, device in devices().items():
        stem = name.replace("-", "_")
        names[f"{stem}_memory"] = f"{device.memory_gb} GB/GPU"
        names[f"{stem}_bandwidth"] = f"{device.memory_tb_s} TB/s/GPU"
        names[f"{stem}_domain"] = f"{device.domain} GPU"
        names |= {f"{stem}_{precision}": f"{rate} TFLOP/s/GPU" for precision, rate in device.tflops.items()}
    return names
