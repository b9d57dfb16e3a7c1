"""Gradients made whole after the backward pass, their norm over weights on different meshes, and the clip.

`torch.nn.utils.clip_grad_norm_` refuses weights of different meshes (dense and experts), and a norm in which a weight
counts once for each rank that holds a copy is a silent error. Here a weight's squares are divided by its copies.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.fsdp import FSDPModule

from moesaic.parallel.collectives import sum_
from moesaic.parallel.meshes import Meshes
from moesaic.parallel.part import Part
from moesaic.parallel.private import local
from moesaic.parallel.shard import shards_weights
from moesaic.parallel.weights import Ledger

BUCKET_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Weight:
    """One weight of this rank."""

    name: str
    parameter: nn.Parameter
    copies: int  # ranks of the world that hold the same piece

    @property
    def gradient(self) -> Tensor:
        """The local piece; zeros when nothing has reached the weight."""
        if self.parameter.grad is None:
            self.parameter.grad = torch.zeros_like(self.parameter)
        return local(self.parameter.grad)


class Gradients:
    """The gradients of this rank's parts. Every method is called by every rank."""

    def __init__(self, parts: list[Part], ledgers: list[Ledger], meshes: Meshes) -> None:
        self.parts, self.meshes = parts, meshes
        self.summed_over_tp: set[str] = set().union(*(x.summed_over_tp for x in ledgers))
        self.routed: set[str] = set().union(*(x.routed for x in ledgers))
        tied = parts[0].config.tie_embeddings and meshes.layout.pp > 1
        self.tied = [part.embedding for part in parts if part.embedding is not None] if tied else []
        self.ends = meshes.ends if tied else None  # here, for making a group takes every rank, middle stages too

    def weights(self) -> Iterator[Weight]:
        """Every weight that is trained."""
        for part in self.parts:
            for name, parameter in part.named_parameters():
                if parameter.requires_grad:
                    yield Weight(name, parameter, self._copies(name))

    def _copies(self, name: str) -> int:
        layout = self.meshes.layout
        sharded = shards_weights(layout)
        if name in self.routed:
            return 1 if sharded else layout.edp
        copies = 1 if sharded else layout.dp * layout.cp
        copies *= layout.tp if name in self.summed_over_tp else 1
        # A tied embedding lies on the first and on the last stage of a pipeline.
        return copies * (2 if name == "embedding" and layout.pp > 1 and self.parts[0].config.tie_embeddings else 1)

    def finish(self) -> None:
        """Sum over all ranks that hold copies: after this, copies have equal gradients."""
        trained = list(self.weights())
        if not isinstance(self.parts[0], FSDPModule):
            reduce = torch.bfloat16 if self.meshes.layout.reduce == "bf16" else torch.float32
            _sum([w.gradient for w in trained if w.name not in self.routed], self.meshes.fsdp, reduce)
            _sum([w.gradient for w in trained if w.name in self.routed], self.meshes.edp, reduce)
        _sum([w.gradient for w in trained if w.name in self.summed_over_tp], self.meshes.tp)
        self._sum_tied()

    def _sum_tied(self) -> None:
        pieces = [local(e.grad) for e in self.tied if e is not None and e.grad is not None]
        if len(pieces) == 2:  # both ends of the pipeline on this rank
            pieces[0] += pieces[1]
            pieces[1].copy_(pieces[0])
        elif pieces:
            sum_(pieces[0], self.ends)

    def norm(self) -> float:
        """Euclidean norm of the gradient of the whole model, the same on every rank."""
        squares: list[Tensor] = []
        for weight in self.weights():
            squares.append(_squares(weight.gradient) / weight.copies)
        zero = torch.zeros((), dtype=torch.float64, device=self.meshes.world.device)  # of a rank that trains nothing
        total = torch.stack(squares).sum() if squares else zero
        if self.meshes.world.size > 1:
            sum_(total, torch.distributed.group.WORLD)
        return math.sqrt(float(total))

    def scale(self, factor: float) -> None:
        """Multiply all gradients in place."""
        if gradients := [w.gradient for w in self.weights()]:
            torch._foreach_mul_(gradients, factor)


def _squares(gradient: Tensor) -> Tensor:
    """Sum of squares: the norm of each row in fp32 (off by 1e-7 at most), their squares in fp64.

    On a CPU a cast of every square to fp64 takes forty times as long.
    """
    rows: Tensor = torch.linalg.vector_norm(gradient, dim=-1)
    return rows.double().square().sum()


def _sum(gradients: list[Tensor], group: ProcessGroup | None, dtype: torch.dtype = torch.float32) -> None:
    """Sum over ranks in place: many small tensors in one message, a large one without a copy of it."""
    if group is None:
        return
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        bytes_ = gradient.numel() * dtype.itemsize
        if bytes_ >= BUCKET_BYTES and gradient.dtype == dtype and gradient.is_contiguous():
            sum_(gradient, group)
            continue
        bucket.append(gradient)
        size += bytes_
        if size >= BUCKET_BYTES:
            _sum_together(bucket, group, dtype)
            bucket, size = [], 0
    if bucket:
        _sum_together(bucket, group, dtype)


def _sum_together(bucket: list[Tensor], group: ProcessGroup, dtype: torch.dtype) -> None:
    flat = torch.cat([g.flatten().to(dtype) for g in bucket])
    sum_(flat, group)
    pieces = flat.split([g.numel() for g in bucket])
    torch._foreach_copy_(bucket, [p.view_as(g) for p, g in zip(pieces, bucket, strict=True)])
