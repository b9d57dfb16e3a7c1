"""Which layers a pipeline stage holds, how many micro-batches are in flight there, and which stages can be the worst.

Stages hold n_layers // pp layers, and n_layers % pp of them one more: not the last, which holds the head, nor the
first ones, which keep most activations (Llama 3, arXiv:2407.21783, sec. 3.3.2). Layers without experts come first in
the model and fill the stages in order; where they are scattered (`Shape.dense_at`) each layer counts as a share of both
kinds. The chunks of an interleaved stage are priced as if they stood together.
"""

from dataclasses import dataclass

import numpy as np

from moesaic.plan.layouts import Array, Layouts
from moesaic.plan.shape import Shape


@dataclass(frozen=True)
class Stage:
    """One stage of each layout. `dense` and `sparse` count layers, in fractions where they are scattered."""

    index: Array  # from 0
    dense: Array
    sparse: Array

    def first(self) -> Array:
        """Whether it holds the embedding."""
        out: Array = self.index == 0
        return out

    def last(self, L: Layouts) -> Array:
        """Whether it holds the output head."""
        out: Array = self.index == L.pp - 1
        return out


def stage(shape: Shape, L: Layouts, index: Array, layers: Array | None = None) -> Stage:
    """The stage at `index` of each layout; with as many layers as given, if they are."""
    few, full = split(shape, L)
    start = index * few + np.maximum(index - full, 0)
    layers = few + ((index >= full) & (index < L.pp - 1)) if layers is None else layers
    return Stage(index, *kinds(shape, start, layers))


def split(shape: Shape, L: Layouts) -> tuple[Array, Array]:
    """Layers of a stage at least, and the first stage that holds one more: the last stage where none does.

    This is `stages.layer_counts` with the last stage the lightest, for all layouts at once.
    """
    few = np.floor(shape.n_layers / L.pp)
    return few, L.pp - 1 - (shape.n_layers - few * L.pp)


def kinds(shape: Shape, start: Array, layers: Array) -> tuple[Array, Array]:
    """Dense and sparse ones among `layers` layers from `start` on."""
    if not shape.sparse_layers:
        dense = layers + 0.0
    elif shape.dense_at:
        dense = layers * (shape.dense_layers / shape.n_layers)
    elif shape.dense_layers:
        dense = np.clip(shape.dense_layers - start, 0, layers)
    else:
        dense = 0.0 * layers
    return dense, layers - dense


def heaviest_candidates(shape: Shape, L: Layouts) -> list[Array]:
    """Stages one of which needs most memory: the first (embedding), the last (head), and few between.

    Of two stages with the same layers the earlier has at least as many micro-batches in flight. So of each kind (how
    many layers, and whether they are dense, mixed or sparse) only the first counts, and those like the first stage not
    at all.
    """
    last = L.pp - 1
    few, full = split(shape, L)
    between = [full]
    if leading(shape):
        sparse = first_sparse(shape, few, full)
        between += [sparse - 1, sparse]  # the one with both kinds, and the one after
    return [0 * last, *(np.clip(index, 0, last) for index in between), last]


def slowest_candidates(shape: Shape, L: Layouts) -> list[Array]:
    """Stages one of which takes longest.

    That is the last, which holds the head, or one with a layer more: any, or where dense layers come first, the first
    or the last such. The first stage, where dense layers are the slower ones.
    """
    last, full = L.pp - 1, split(shape, L)[1]
    if leading(shape):
        return [last, 0 * last, full, np.maximum(last - 1, 0)]
    return [last, full] if (full < last).any() else [last]


def leading(shape: Shape) -> bool:
    """Whether stages differ in their share of dense layers."""
    return bool(shape.sparse_layers and shape.dense_layers and not shape.dense_at)


def first_sparse(shape: Shape, few: Array, full: Array) -> Array:
    """The first stage without dense layers, if any."""
    early = np.ceil(shape.dense_layers / few)
    late = full + np.ceil((shape.dense_layers - full * few) / (few + 1))
    out: Array = np.where(shape.dense_layers <= full * few, early, late)
    return out


def in_flight(L: Layouts, micro_batches: Array, index: Array, zero_bubble: bool) -> Array:
    """Micro-batches whose activations a stage keeps at most, an interleaved stage in shares of its chunks.

    1F1B: pp - i on stage i. Interleaved: 2 (pp - 1 - i) + (v - 1) pp chunks of warm-up and one more (Narayanan et al.
    2021, arXiv:2104.04473, sec. 2.2.2; on the first stage pp (1 + (pp - 1) / (pp v)), Korthikanti et al. 2022, eq. 8).
    Zero bubble (ZB-H1): pp on every stage, as gradients of weights wait (Qi et al. 2024, arXiv:2401.10241, sec. 2.3).
    Never more than there are.
    """
    if zero_bubble:
        return np.minimum(L.pp, micro_batches)
    interleaved = L.pp + (L.pp - 1 - 2 * index) / L.chunks
    return np.minimum(np.where(L.chunks > 1, interleaved, L.pp - index), micro_batches)
