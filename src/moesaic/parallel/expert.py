"""Expert parallelism: each rank holds some experts, rows travel to them and back (Lepikhin et al. 2020, sec. 3).

Legend: T tokens of this rank, K experts a token visits, R routed rows, E experts, H experts on this rank,
D model width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.tensor import Shard

from moesaic.model import Routing
from moesaic.parallel.collectives import ROWS, exchange_counts, exchange_rows
from moesaic.parallel.local import use_local
from moesaic.parallel.meshes import Meshes
from moesaic.parallel.part import Part
from moesaic.parallel.tensor import around
from moesaic.parallel.weights import Ledger, distribute, expert_views, named_experts


def apply_expert_parallel(part: Part, meshes: Meshes, ledger: Ledger) -> None:
    """Deal out experts, whole or split over tensor ranks, and send rows to them.

    Router choice and balance loss stay where the token is; only rows and their outputs travel.
    """
    layout = meshes.layout
    for name, experts, routed in named_experts(part):
        first = name + ".w_in" in ledger.width_first
        if not routed:
            if first and meshes.tp is None:  # else dealt out with all that is dense
                use_local(experts, expert_views(first))
            continue
        ledger.routed |= {f"{name}.{weight}" for weight, _ in experts.named_parameters()}
        by_expert, by_width = (Shard(1), Shard(0)) if first else (Shard(0), Shard(2))
        names = [("ep", by_expert)] * (layout.ep > 1) + [("etp", by_width)] * (layout.etp > 1)
        if names and meshes.experts is not None:
            mesh = meshes.experts[tuple(n for n, _ in names)]
            for weight in ("w_in", "w_out"):
                distribute(experts, weight, mesh, *(placement for _, placement in names))
        if names or first:
            use_local(experts, expert_views(first))
        if layout.etp > 1 and meshes.tp is not None:
            around(experts, meshes.tp, ROWS)
        if meshes.ep is not None:
            Exchange(meshes.ep, part.config.n_experts).around(experts)


class Exchange:
    """The way of a layer's rows to their experts and home.

    Every rank takes part in every exchange, with or without rows: an expert without tokens computes on none and gets
    a gradient of zero.
    """

    def __init__(self, group: ProcessGroup, n_experts: int) -> None:
        self.group, self.n_experts, self.here = group, n_experts, n_experts // group.size()
        self._way: tuple[Routing, Tensor, list[int], list[int]] | None = None

    def around(self, experts: nn.Module) -> None:
        """Send rows before `experts` and bring their outputs home after."""
        experts.register_forward_pre_hook(self._send)
        experts.register_forward_hook(self._return, prepend=True)

    def _send(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, Routing]:
        x_TD, routing = args
        flat = routing.experts_TK.flatten()
        order_R = flat.argsort(stable=True)
        leaving_E = torch.bincount(flat, minlength=self.n_experts)
        arriving_E = exchange_counts(leaving_E, self.group)  # for each rank its rows for each expert here
        leaving, arriving = (n.view(-1, self.here).sum(dim=1).tolist() for n in (leaving_E, arriving_E))
        rows_RD = x_TD.index_select(0, order_R // routing.experts_TK.shape[1])
        rows_RD = exchange_rows(rows_RD, arriving, leaving, self.group)
        expert_R = torch.arange(self.here, device=flat.device).repeat(self.group.size()).repeat_interleave(arriving_E)
        self._way = (routing, order_R, arriving, leaving)
        one_R1 = torch.ones(len(expert_R), 1, device=flat.device)
        return rows_RD, Routing(expert_R.unsqueeze(1), one_R1, None)

    def _return(self, module: nn.Module, args: tuple[Any, ...], y_RD: Tensor) -> Tensor:
        assert self._way is not None
        (routing, order_R, arriving, leaving), self._way = self._way, None
        home_RD = exchange_rows(y_RD, leaving, arriving, self.group)
        place_R = torch.empty_like(order_R).scatter_(0, order_R, torch.arange(len(order_R), device=order_R.device))
        y_TKD = home_RD.index_select(0, place_R).view(*routing.experts_TK.shape, -1)
        return (y_TKD * routing.weights_TK.unsqueeze(-1).to(y_TKD.dtype)).sum(dim=1)
