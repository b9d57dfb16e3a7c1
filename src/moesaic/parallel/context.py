"""Context parallelism: each rank has the queries of its pieces of a sequence, and gathers all keys and values.

With multi-query attention keys and values are one head each, so gathering them whole costs little and needs no ring.
"""

import torch
from torch import Tensor

from moesaic.model.attend import attend
from moesaic.model.attention import Attention
from moesaic.model.kernels import RowKernels
from moesaic.parallel.collectives import SEQUENCE, gather
from moesaic.parallel.cut import Pieces, SequenceCut
from moesaic.parallel.part import Part


class GatheredAttention:
    """In place of `attend`, on one context rank."""

    def __init__(self, cut: SequenceCut) -> None:
        self.cut = cut
        n = 2 * cut.cp_size
        # Pieces arrive rank by rank: 0, n-1, 1, n-2, ... Where each position of the sequence then lies:
        arrived = [piece for rank in range(cut.cp_size) for piece in (rank, n - 1 - rank)]
        self.order = [arrived.index(piece) for piece in range(n)]

    def __call__(self, q_BCHW: Tensor, k_BCKW: Tensor, v_BCKW: Tensor, sight: Pieces, kernels: RowKernels) -> Tensor:
        """Attend from this rank's positions to all that they may see; shapes as in `attend`."""
        kv = gather(torch.cat((k_BCKW, v_BCKW), dim=-1), SEQUENCE, self.cut.cp)
        kv = kv.unflatten(1, (2 * self.cut.cp_size, -1))[:, self.order].flatten(1, 2)
        k, v = kv.chunk(2, dim=-1)
        out = []
        for q, piece in zip(q_BCHW.chunk(2, dim=1), (sight.front, sight.back), strict=True):
            end = piece.begin + q.shape[1]
            out.append(attend(q, k[:, :end], v[:, :end], piece, kernels))
        return torch.cat(out, dim=1)


def apply_context_parallel(part: Part) -> None:
    """Let the attention of every layer gather keys and values."""
    for block in part.blocks:
        attention: Attention = block.attention
        attention.attend = GatheredAttention(part.cut)  # type: ignore[assignment]
