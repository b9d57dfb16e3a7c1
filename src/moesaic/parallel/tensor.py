"""Tensor and sequence parallelism (Shoeybi et al. 2019; Korthikanti et al. 2022, sec. 4.2.2), at any degree for any
number of key/value heads.

Between attention and experts each tensor rank holds a piece of every sequence. Attention and dense blocks gather the
pieces, compute with their share of heads or inner width, and sum the outputs back into pieces.

Weights that every rank holds whole (norms, router, key/value projections when there are fewer such heads than ranks)
see only a part of their gradient on each: the pull of the rank's own tokens, or of its own query heads. Their
gradients are summed over tensor ranks before the update; without that training goes on and is silently wrong.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement, Replicate, Shard

from moesaic.model import Routing
from moesaic.model.attention import Attention
from moesaic.parallel.collectives import ROWS, SEQUENCE, gather, scatter_sum
from moesaic.parallel.local import View, use_local
from moesaic.parallel.meshes import Meshes
from moesaic.parallel.part import Part
from moesaic.parallel.weights import Ledger, distribute, expert_views, named_experts


def apply_tensor_parallel(part: Part, meshes: Meshes, ledger: Ledger) -> None:
    """Deal out the weights of `part` and put the collectives around its modules. Does nothing for tp = 1."""
    if meshes.tp is None or meshes.dense is None:
        return
    mesh, rank, size = meshes.dense["tp"], meshes.place.tp, meshes.layout.tp
    for name, module in part.named_modules():
        if isinstance(module, Attention):
            split, views = _heads(module, rank, size)
            around(module, meshes.tp, SEQUENCE)
        elif module is part:
            split, views = {"embedding": Shard(0), "head": Shard(0)}, {}
        else:
            split, views = {}, {}
        if not name.endswith(".experts") and any(True for _ in module.parameters(recurse=False)):
            _deal(module, name, mesh, split, ledger)
            use_local(module, views)
    for name, experts, routed in named_experts(part):
        if not routed:
            first = name + ".w_in" in ledger.width_first
            split = {"w_in": Shard(0 if first else 2), "w_out": Shard(0 if first else 2), "b_in": Shard(1)}
            _deal(experts, name, mesh, split, ledger)
            use_local(experts, expert_views(first) | {"b_out": partial(_on_first, rank=rank)})
            around(experts, meshes.tp, ROWS)


def around(module: nn.Module, group: ProcessGroup, dim: int) -> None:
    """Gather the pieces of its input before `module`, with their routing if they have one; cut its output again."""

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = args
        if rest and isinstance(rest[0], Routing):
            rest[0] = Routing(
                gather(rest[0].experts_TK, ROWS, group), gather(rest[0].weights_TK, ROWS, group), rest[0].stats
            )
        return gather(x, dim, group), *rest

    def after(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        return scatter_sum(out, dim, group)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after, prepend=True)  # what is put around first ends last


def _deal(module: nn.Module, prefix: str, mesh: DeviceMesh, split: dict[str, Shard], ledger: Ledger) -> None:
    """Each rank gets its piece of the weights named in `split`, and a whole copy of the others."""
    for name, _ in list(module.named_parameters(recurse=False)):
        placement: Placement = split.get(name, Replicate())
        distribute(module, name, mesh, placement)
        if placement.is_replicate():
            ledger.summed_over_tp.add(f"{prefix}.{name}" if prefix else name)


def _heads(attention: Attention, rank: int, size: int) -> tuple[dict[str, Shard], dict[str, View]]:
    """Query heads are dealt out; key/value heads too where there are enough, else each rank reads the one it needs."""
    split = {"wq": Shard(0), "bq": Shard(0), "wo": Shard(1)}
    views: dict[str, View] = {"bo": partial(_on_first, rank=rank)}
    if attention.kv_heads >= size:
        split |= dict.fromkeys(("wk", "wv", "bk", "bv"), Shard(0))
        attention.kv_heads //= size
    else:
        begin = rank * attention.kv_heads // size * attention.head_dim
        own = partial(_rows, begin=begin, end=begin + attention.head_dim)
        views |= dict.fromkeys(("wk", "wv", "bk", "bv"), own)
        attention.kv_heads = 1
    attention.heads //= size
    return split, views


def _rows(piece: Tensor, begin: int, end: int) -> Tensor:
    return piece[begin:end]


def _on_first(piece: Tensor, rank: int) -> Tensor:
    """The bias of a sum over ranks must be added once."""
    return piece if rank == 0 else piece * 0
