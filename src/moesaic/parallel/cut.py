"""Which part of a sequence this rank computes.

Context ranks take two pieces each, one from the front and one from the back, since late positions look at more keys
than early ones (Llama 3, arXiv:2407.21783, sec. 3.3.2). Tensor ranks cut what a context rank holds once more, for
everything between attention and experts (sequence parallelism, Korthikanti et al. 2022, sec. 4.2.2).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from moesaic.model.attend import Visibility
from moesaic.parallel.meshes import Meshes


@dataclass(frozen=True)
class Pieces:
    """Who sees whom, for the front and the back piece of a context rank."""

    front: Visibility
    back: Visibility


@dataclass(frozen=True)
class SequenceCut:
    """This rank's share of every sequence, and the groups that hold the rest of it. A group of one is None."""

    cp_size: int = 1
    cp_rank: int = 0
    tp_size: int = 1
    tp_rank: int = 0
    cp: ProcessGroup | None = None
    tp: ProcessGroup | None = None
    sequence: ProcessGroup | None = None

    @classmethod
    def of(cls, meshes: Meshes) -> "SequenceCut":
        """The cut of this rank."""
        layout, place = meshes.layout, meshes.place
        return cls(layout.cp, place.cp, layout.tp, place.tp, meshes.cp, meshes.tp, meshes.sequence)

    def bounds(self, seq: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Positions of the front and the back piece in a sequence of `seq`."""
        length = seq // (2 * self.cp_size)
        back = 2 * self.cp_size - 1 - self.cp_rank
        return (self.cp_rank * length, (self.cp_rank + 1) * length), (back * length, (back + 1) * length)

    def context(self, x_BS: Tensor) -> Tensor:
        """Positions of this context rank: `[B, S] -> [B, C]`."""
        if self.cp_size == 1:
            return x_BS
        (lo, hi), (begin, end) = self.bounds(x_BS.shape[1])
        return torch.cat((x_BS[:, lo:hi], x_BS[:, begin:end]), dim=1)

    def tensor(self, x_BC: Tensor) -> Tensor:
        """Positions of this tensor rank among those of its context rank: `[B, C] -> [B, L]`."""
        length = x_BC.shape[1] // self.tp_size
        return x_BC[:, self.tp_rank * length : (self.tp_rank + 1) * length]

    def sight(self, whole: Visibility, seq: int) -> Visibility | Pieces:
        """What attention on this rank is told of who sees whom."""
        if self.cp_size == 1:
            return whole
        front, back = self.bounds(seq)
        return Pieces(whole.piece(*front), whole.piece(*back))

    def local_length(self, seq: int) -> int:
        """Positions of the residual stream on this rank."""
        return seq // (self.cp_size * self.tp_size)
