"""Layouts, many at once: arrays of degrees of parallelism, and the rules that they obey.

Dense weights lie on pp x dp x cp x tp ranks. Experts lie on pp x edp x ep x etp over the same ranks: `etp = 1` folds
them over data and tensor ranks (one whole expert on a rank), `etp = tp` splits each expert as dense blocks are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moesaic.plan.shape import Shape

Array = NDArray[Any]  # of numbers, one for each layout
NONE, SELECTIVE, FULL = 0, 1, 2  # codes of `recompute`
RECOMPUTE: tuple[Literal["none", "selective", "full"], ...] = ("none", "selective", "full")


@dataclass(frozen=True)
class Layouts:
    """Arrays of one length, one layout at each index; or a grid: arrays that broadcast against each other.

    All formulas are element by element, so that over a grid what depends on few degrees is computed once for all.
    """

    tp: Array
    pp: Array
    cp: Array
    dp: Array
    ep: Array
    etp: Array
    micro_batch: Array  # sequences
    chunks: Array  # model chunks on a stage: 1 is plain 1F1B, more is interleaved
    zero: Array  # ZeRO stage: 0 to 3
    recompute: Array  # NONE, SELECTIVE, FULL

    @classmethod
    def of(
        cls,
        tp: int | Array = 1,
        pp: int | Array = 1,
        cp: int | Array = 1,
        dp: int | Array = 1,
        ep: int | Array = 1,
        etp: int | Array | None = None,
        micro_batch: int | Array = 1,
        chunks: int | Array = 1,
        zero: int | Array = 1,
        recompute: int | Array = NONE,
    ) -> "Layouts":
        """Layouts from scalars and arrays, broadcast. Without `etp`, experts are split over tp only when ep = 1."""
        etp = np.where(np.asarray(ep) == 1, tp, 1) if etp is None else etp
        given = np.broadcast_arrays(tp, pp, cp, dp, ep, etp, micro_batch, chunks, zero, recompute)
        return cls(*(np.atleast_1d(np.asarray(a, dtype=np.int64)) for a in given))

    def __len__(self) -> int:
        return len(self.tp)

    @property
    def floats(self) -> "Layouts":
        """The same in float64, in which division is several times faster than in integers."""
        return Layouts(*(np.asarray(getattr(self, f.name), dtype=np.float64) for f in fields(self)))

    def pick(self, index: Array) -> "Layouts":
        """Of a grid the layouts at positions `index` (as if it were flat), one after another."""
        arrays = np.broadcast_arrays(*(getattr(self, f.name) for f in fields(self)))
        where = np.unravel_index(index, arrays[0].shape)
        return Layouts(*(a[where].astype(np.int64) for a in arrays))

    def __getitem__(self, index: slice | Array) -> "Layouts":
        return Layouts(*(getattr(self, f.name)[index] for f in fields(self)))

    @property
    def world(self) -> Array:
        """Devices of each layout."""
        world: Array = self.tp * self.pp * self.cp * self.dp
        return world

    @property
    def edp(self) -> Array:
        """Replicas of each expert shard."""
        replicas: Array = self.dp * self.cp * self.tp // (self.ep * self.etp)
        return replicas

    def micro_batches(self, batch: int) -> Array:
        """Micro-batches of one replica in a step of at most `batch` sequences.

        Interleaved schedules take whole rounds of `pp` only (Megatron-LM); what does not divide is left out.
        """
        count = batch // (self.dp * self.micro_batch)
        return np.where(self.chunks > 1, count - count % self.pp, count)

    def row(self, index: int) -> dict[str, int | str]:
        """One layout as plain values."""
        out: dict[str, int | str] = {f.name: int(getattr(self, f.name)[index]) for f in fields(self)}
        return out | {"recompute": RECOMPUTE[int(self.recompute[index])]}

    def __iter__(self) -> Iterator[dict[str, int | str]]:
        return (self.row(i) for i in range(len(self)))


def join(parts: Sequence[Layouts]) -> Layouts:
    """All layouts of `parts` after each other."""
    return Layouts(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Layouts)))


def valid(shape: Shape, layouts: Layouts, batch: int) -> Array:
    """Which layouts can run at all: every divisibility rule, in one array."""
    L = layouts
    kv, stages = shape.n_kv_heads, layouts.pp * layouts.chunks
    ok: Array = (shape.n_heads % L.tp == 0) & (shape.d_model % L.tp == 0) & (L.pp <= shape.n_layers)
    if shape.latent is None:
        ok = ok & ((kv % L.tp == 0) | (L.tp % kv == 0))
    # Chunks hold the same number of layers; embedding and head may each stand for one (Llama 3, sec. 3.3.2).
    ok = ok & ((L.chunks == 1) | ((L.pp > 1) & (-shape.n_layers % stages <= 2) & (stages <= shape.n_layers + 2)))
    ok = ok & (shape.n_experts % L.ep == 0) & ((L.dp * L.cp * L.tp) % (L.ep * L.etp) == 0)
    ok = ok & ((L.etp == 1) | (L.etp == L.tp)) & (L.micro_batches(batch) >= 1)
    ok = ok & (shape.d_ff % L.tp == 0) & (shape.d_expert % L.etp == 0)
    return ok
