"""Shapes of the weights on one rank after tensor and expert ranks have dealt them out, before replicas shard them."""

from collections.abc import Iterator
from dataclasses import dataclass

from moesaic.recipe import Layout, Model


@dataclass(frozen=True)
class LocalWeight:
    """One weight on one rank: `rows` x `rest` values, of which replicas deal out rows."""

    name: str  # within its layer
    layer: int | None  # None: embedding, final norm, head
    rows: int
    rest: int = 1
    summed_over_tp: bool = False  # whole on every tensor rank, each of which sees a part of its gradient
    routed: bool = False  # of experts, whose replicas are others than those of dense weights

    @property
    def numel(self) -> int:
        """Values."""
        return self.rows * self.rest

    def padded(self, shards: int) -> int:
        """Values when every one of `shards` holds equally many rows, some of them empty (as FSDP2 does)."""
        return -(-self.rows // shards) * shards * self.rest


def local_weights(model: Model, layout: Layout, layers: range, first: bool, last: bool) -> Iterator[LocalWeight]:
    """The weights of a piece of the model, with the embedding if it is the `first` and the head if it is the `last`."""
    d, tp = model.d_model, layout.tp
    if first or (last and model.tie_embeddings):
        yield LocalWeight("embedding", None, model.vocab_size // tp, d)
    for n in layers:
        yield from _attention(model, n, tp)
        yield LocalWeight("attention_norm", n, d, summed_over_tp=True)
        yield LocalWeight("experts_norm", n, d, summed_over_tp=True)
        routed, width = model.experts_of(n) > 1, model.d_ff_of(n)
        if routed:
            yield LocalWeight("router", n, model.n_experts, d, summed_over_tp=True)
            experts, width = model.n_experts // layout.ep, width // layout.etp
        else:
            experts, width = 1, width // tp
        # Dealt out over replicas with their inner width first: there are too few experts for many replicas.
        dealt = layout.zero and (layout.dp * layout.cp > 1 or layout.edp > 1)
        rows, rest = (width, experts) if dealt else (experts, width)
        yield LocalWeight("w_in", n, rows, 2 * rest * d, routed=routed)
        yield LocalWeight("w_out", n, rows, rest * d, routed=routed)
        if model.mlp_bias:
            yield LocalWeight("b_in", n, 2, width)
            yield LocalWeight("b_out", n, d, summed_over_tp=True)
    if last:
        yield LocalWeight("norm", None, d, summed_over_tp=True)
        if not model.tie_embeddings:
            yield LocalWeight("head", None, model.vocab_size // tp, d)


def _attention(model: Model, n: int, tp: int) -> Iterator[LocalWeight]:
    """Query heads are dealt out, key/value heads where there are enough of them."""
    d, q, kv = model.d_model, model.n_heads * model.head_dim // tp, model.n_kv_heads * model.head_dim
    whole = model.n_kv_heads < tp
    kv = kv if whole else kv // tp
    yield LocalWeight("wq", n, q, d)
    yield LocalWeight("wo", n, d, q)
    for name in ("wk", "wv"):
        yield LocalWeight(name, n, kv, d, summed_over_tp=whole)
    if model.attention_bias:
        yield LocalWeight("bq", n, q)
        yield LocalWeight("bk", n, kv, summed_over_tp=whole)
        yield LocalWeight("bv", n, kv, summed_over_tp=whole)
        yield LocalWeight("bo", n, d, summed_over_tp=True)
    if model.qk_norm is not None:
        widths = (q, kv) if model.qk_norm == "all" else (model.head_dim,) * 2  # "all" allows no tensor ranks
        for name, width in zip(("q_norm", "k_norm"), widths, strict=True):
            yield LocalWeight(name, n, width, summed_over_tp=True)
