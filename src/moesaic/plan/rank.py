"""What one rank holds of a layer: its share of heads, weights and parameters, for many layouts at once."""

from dataclasses import dataclass

import numpy as np

from moesaic.plan.layouts import Array, Layouts
from moesaic.plan.placement import Stage
from moesaic.plan.shape import Shape


@dataclass(frozen=True)
class RankParameters:
    """Parameters that one rank holds of one layer, and outside the layers."""

    dense_layer: Array
    sparse_layer: Array  # without routed experts
    experts: Array  # routed experts of one sparse layer
    embedding: Array
    head: Array  # a matrix of its own, or the copy of a tied embedding on the last stage
    single_head: Array  # the same where one stage holds both: nothing if tied
    final: float  # norm before the head, and what else stands outside the layers

    def outside(self, place: Stage, L: Layouts) -> Array:
        """Parameters of a stage beside its layers."""
        head = np.where(L.pp == 1, self.single_head, self.head) + self.final
        out: Array = np.where(place.first(), self.embedding, 0.0) + np.where(place.last(L), head, 0.0)
        return out


@dataclass(frozen=True)
class Heads:
    """Features of all attention heads of one tensor rank."""

    queries: Array
    keys: Array
    values: Array
    output: Array

    @property
    def all(self) -> Array:
        """Everything that goes into the scores and comes out."""
        return self.queries + self.keys + self.values + self.output


def heads_on_rank(shape: Shape, tp: Array) -> Heads:
    """Widths on one tensor rank; key/value heads fewer than ranks are replicated."""
    h = shape.n_heads
    if a := shape.latent:
        wide, value = h * (a.nope_dim + a.rope_dim) / tp, h * a.value_dim / tp
        return Heads(wide, wide, value, value)
    q, kv = h * shape.head_dim / tp, shape.n_kv_heads * shape.head_dim / np.minimum(tp, shape.n_kv_heads)
    return Heads(q, kv, kv, q)


def attention_on_rank(shape: Shape, tp: Array) -> tuple[Array, float]:
    """Weights of one layer's attention on one tensor rank: of products split over tp, and of those that each rank has.

    The latter are the projections down to latents (DeepSeek-V2). `attention_extra` is not split.
    """
    d, heads = shape.d_model, heads_on_rank(shape, tp)
    if a := shape.latent:
        up = a.kv_rank * shape.n_heads * (a.nope_dim + a.value_dim) / tp
        up = up + (d if a.q_rank is None else a.q_rank) * heads.queries + heads.output * d
        return up, d * (a.kv_rank + a.rope_dim + (a.q_rank or 0))
    return d * heads.all, 0.0


def attention_vectors(shape: Shape, tp: Array) -> Array:
    """Norms, biases and whatever else one layer's attention holds on one tensor rank beside matrices."""
    if a := shape.latent:
        return a.kv_rank + (a.q_rank or 0) + shape.attention_extra + 0.0 * tp
    heads = heads_on_rank(shape, tp)
    biases = heads.queries + heads.keys + heads.values + shape.d_model if shape.biases else 0.0 * tp
    return shape.qk_norm + shape.attention_extra + biases


def block_on_rank(shape: Shape, width: int, tp: Array) -> Array:
    """Weights of a feed-forward block split over `tp`; the bias of its output is whole on each rank."""
    whole = shape.d_model if shape.biases or shape.ffn_biases else 0
    return (shape.block_parameters(width) - whole) / tp + whole


def on_rank(shape: Shape, layouts: Layouts) -> RankParameters:
    """Parameters of one rank. Norms, routers and learned positions are whole on each tensor rank."""
    tp, d = layouts.tp, shape.d_model
    split, whole = attention_on_rank(shape, tp)
    attention = split + whole + attention_vectors(shape, tp) + shape.norm_parameters
    shared = block_on_rank(shape, shape.d_shared, tp) if shape.n_shared else 0.0
    experts = shape.n_experts / layouts.ep * block_on_rank(shape, shape.d_expert, layouts.etp)
    head = shape.vocab_size * d / tp
    return RankParameters(
        dense_layer=attention + block_on_rank(shape, shape.d_ff, tp),
        sparse_layer=attention + shape.router_parameters + shared,
        experts=experts if shape.sparse_layers else 0.0 * experts,
        embedding=head + shape.positions * d,
        head=head,
        single_head=head * (not shape.tied),
        final=d * shape.norm_values + shape.extra,
    )
