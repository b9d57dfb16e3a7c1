"""Collectives inside the forward pass, each with its adjoint as backward.

The objective is a sum over ranks. So what is gathered has gradients on every rank, and they are summed on the way
back; what is summed hands its gradient to every rank.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from moesaic.parallel.private import (
    all_gather_single_autograd,
    all_to_all_single_autograd,
    arrived,
    reduce_scatter_single_autograd,
)

ROWS, SEQUENCE = 0, 1  # dimension of rows in `[rows, d]`, of positions in `[batch, seq, ...]`


def gather(x: Tensor, dim: int, group: ProcessGroup | None) -> Tensor:
    """Pieces put together along `dim` in the order of ranks; backward sums gradients and cuts them."""
    if group is None:
        return x
    # Not by torch along `dim`: for one sequence it takes a view of what has not arrived, and the gradient is lost.
    pieces = arrived(all_gather_single_autograd(x.contiguous(), 0, group))
    return pieces if dim == 0 else torch.cat(pieces.chunk(group.size()), dim=dim)


def scatter_sum(x: Tensor, dim: int, group: ProcessGroup | None) -> Tensor:
    """Summed over ranks and cut into pieces along `dim`; backward puts gradients together."""
    return x if group is None else arrived(reduce_scatter_single_autograd(x.contiguous(), "sum", dim, group))


def exchange_rows(x_RD: Tensor, arriving: list[int], leaving: list[int], group: ProcessGroup) -> Tensor:
    """Rows for each rank against rows from each rank, in any number, none included; backward sends gradients home."""
    return arrived(all_to_all_single_autograd(x_RD.contiguous(), arriving, leaving, group))


@torch.no_grad()
def exchange_counts(counts: Tensor, group: ProcessGroup) -> Tensor:
    """An equal share of `counts` for each rank against theirs."""
    out = torch.empty_like(counts)
    dist.all_to_all_single(out, counts, group=group)
    return out


@torch.no_grad()
def sum_(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """Sum over ranks, in place, without a gradient."""
    if group is not None:
        dist.all_reduce(x, group=group)
    return x


@torch.no_grad()
def max_(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """Maximum over ranks, in place, without a gradient."""
    if group is not None:
        dist.all_reduce(x, dist.ReduceOp.MAX, group=group)
    return x
