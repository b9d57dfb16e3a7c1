"""Where each weight lies: what tensor and expert ranks hold of it, and how its gradient is made whole.

Experts may be stored with their inner width first, `[F, E, 2, D]` and `[F, E, D]`: replicas shard the first
dimension, and there are too few experts to deal out among many. Checkpoints see the model's own order.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement, distribute_tensor

from moesaic.parallel.local import View
from moesaic.parallel.part import Part

WIDTH_FIRST = {"w_in": (2, 0, 1, 3), "w_out": (2, 0, 1)}
MODEL_ORDER = {"w_in": (1, 2, 0, 3), "w_out": (1, 2, 0)}


@dataclass
class Ledger:
    """What must be known of the weights of a part after the layout was applied. Names are those of the whole model."""

    summed_over_tp: set[str] = field(default_factory=set)
    """Whole on every tensor rank, each of which sees a part of its gradient."""
    routed: set[str] = field(default_factory=set)
    """Weights of experts that are dealt out or replicated apart from dense weights."""
    width_first: set[str] = field(default_factory=set)
    """Stored with the inner width first."""

    def model_order(self, name: str, stored: Tensor) -> Tensor:
        """A weight, or a moment of it, with the dimensions that it has in the model; a view."""
        if name not in self.width_first:
            return stored
        return stored.permute(MODEL_ORDER[name.rsplit(".", 1)[1]])


def distribute(module: nn.Module, name: str, mesh: DeviceMesh, *placements: Placement) -> None:
    """Put this rank's piece of a weight in its place. The module is on meta: nothing is sent."""
    module.register_parameter(name, nn.Parameter(distribute_tensor(module.get_parameter(name).data, mesh, placements)))


def named_experts(part: Part) -> Iterator[tuple[str, nn.Module, bool]]:
    """Name and module of each layer's experts, and whether a router chooses among them."""
    for n, block in part.layers.items():
        experts: nn.Module = block.experts  # type: ignore[assignment]
        yield f"layers.{n}.experts", experts, block.router is not None


def store_width_first(part: Part, ledger: Ledger, edp: int) -> None:
    """Reorder the dimensions of expert weights that replicas divide, before anything is dealt out."""
    for name, experts, routed in named_experts(part):
        if routed and edp == 1:
            continue
        for weight, order in WIDTH_FIRST.items():
            stored = getattr(experts, weight).data.permute(order)
            experts.register_parameter(weight, nn.Parameter(torch.empty_like(stored.contiguous())))
            ledger.width_first.add(f"{name}.{weight}")


def expert_views(width_first: bool) -> dict[str, View]:
    """What a module of experts does with its local pieces to see them in the model's order."""
    if not width_first:
        return {}
    return {name: partial(torch.permute, dims=order) for name, order in MODEL_ORDER.items()}
