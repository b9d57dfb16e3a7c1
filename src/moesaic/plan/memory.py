"""Memory of one device, for many layouts at once: always that of the heaviest pipeline stage.

Activations follow Korthikanti et al. 2022 (arXiv:2205.05198, eqs. 1 to 6), taken apart into their operands so that
grouped-query and latent attention, gated blocks and experts are priced too.
"""

from dataclasses import dataclass

import numpy as np

from moesaic.plan.job import Job
from moesaic.plan.layouts import FULL, SELECTIVE, Array, Layouts
from moesaic.plan.shape import Shape
from moesaic.plan.stack import Stack

CONTEXT_BYTES = 1.5e9  # CUDA context, NCCL buffers, cuBLAS workspace
FRAGMENTATION = 0.03  # of everything that is allocated
WEIGHT_BYTES = 2


@dataclass(frozen=True)
class Memory:
    """Bytes on one device of the heaviest stage."""

    weights: Array
    gradients: Array
    optimizer: Array
    gathered: Array  # parameters that ZeRO-3 holds whole for the layers at work
    activations: Array
    logits: Array
    reserve: Array

    @property
    def allocated(self) -> Array:
        """What the framework's allocator hands out."""
        return self.weights + self.gradients + self.optimizer + self.gathered + self.activations + self.logits

    @property
    def total(self) -> Array:
        """With context, buffers and fragmentation."""
        return self.allocated + self.reserve


@dataclass(frozen=True)
class RankParameters:
    """Parameters that one rank holds of one layer, and of embedding and head."""

    dense_layer: Array
    sparse_layer: Array  # without routed experts
    experts: Array  # routed experts of one sparse layer
    embedding: Array


def attention_on_rank(shape: Shape, tp: Array) -> Array:
    """Attention weights of one layer on one tensor rank; key/value heads fewer than ranks are replicated."""
    d, h = shape.d_model, shape.n_heads
    if a := shape.latent:
        q_width = h * (a.nope_dim + a.rope_dim)
        whole = d * (a.kv_rank + a.rope_dim) + a.kv_rank
        split = a.kv_rank * h * (a.nope_dim + a.value_dim) + h * a.value_dim * d
        if a.q_rank is None:
            split += d * q_width
        else:
            whole += a.q_rank * (d + 1)
            split += a.q_rank * q_width
        return whole + split / tp + shape.attention_extra
    kv = 2 * shape.n_kv_heads * shape.head_dim / np.minimum(tp, shape.n_kv_heads)
    q = h * shape.head_dim / tp
    biases = q + kv + d if shape.biases else 0
    return d * (2 * q + kv) + shape.qk_norm + biases + shape.attention_extra


def on_rank(shape: Shape, layouts: Layouts) -> RankParameters:
    """Parameters of one rank. Norms and routers are whole on each tensor rank."""
    tp = layouts.tp
    attention = attention_on_rank(shape, tp) + shape.norm_parameters
    shared = shape.block_parameters(shape.d_shared) if shape.n_shared else 0
    experts = shape.n_experts * shape.block_parameters(shape.d_expert) if shape.sparse_layers else 0
    return RankParameters(
        dense_layer=attention + shape.block_parameters(shape.d_ff) / tp,
        sparse_layer=attention + shape.router_parameters + shared / tp,
        experts=experts / (layouts.ep * layouts.etp),
        embedding=shape.embedding_parameters / tp,
    )


def memory(shape: Shape, job: Job, layouts: Layouts, stack: Stack) -> Memory:
    """Memory of each layout, on the stage that needs most."""
    L = layouts
    few = shape.n_layers // L.pp
    more = shape.n_layers - few * L.pp  # stages, the last ones, that hold one layer more
    first_heavy = np.where(more > 0, np.minimum(more, L.pp), L.pp)  # stages from there to the end
    single = L.pp == 1
    parts = on_rank(shape, L)
    activation = layer_activations(shape, job, L, stack)
    in_flight = np.minimum(L.pp, L.micro_batches(job.batch))
    if not job.zero_bubble:
        in_flight = in_flight * np.where(L.chunks > 1, 1 + (L.pp - 1) / (L.pp * L.chunks), 1)
    head = shape.vocab_size * shape.d_model / L.tp
    untied = 0 if shape.tied else 1
    last_layers = few + (more > 0)
    kinds = (
        # stage, its layers, micro-batches in flight, embedding, head
        ("first", few, in_flight, parts.embedding + np.where(single, untied * head, 0), single),
        ("second", few + (more >= L.pp - 1), in_flight * (L.pp - 1) / L.pp, 0.0 * head, False),
        ("heavy", last_layers, in_flight * first_heavy / L.pp, 0.0 * head, False),
        ("last", last_layers, in_flight / L.pp, np.where(single, parts.embedding + untied * head, head), True),
    )
    best: Memory | None = None
    for stage, layers, flight, vocabulary, has_head in kinds:
        found = _stage(shape, job, L, parts, activation, stage == "first", layers, flight, vocabulary, has_head, stack)
        best = found if best is None else _heavier(best, found, (L.pp > 2) | (stage in ("first", "last")))
    assert best is not None
    return best


def _stage(
    shape: Shape,
    job: Job,
    L: Layouts,
    parts: RankParameters,
    activation: tuple[Array, Array, Array, Array],
    first: bool,
    layers: Array,
    flight: Array,
    vocabulary: Array,
    has_head: bool | Array,
    stack: Stack,
) -> Memory:
    dense = dense_layers(shape, L, layers, first)
    sparse = layers - dense
    plain = dense * parts.dense_layer + sparse * parts.sparse_layer + vocabulary
    routed = sparse * parts.experts
    replicas, expert_replicas = L.dp * L.cp, L.edp
    z1, z2, z3 = (L.zero >= n for n in (1, 2, 3))

    def shared(bytes_each: float, when: Array) -> Array:
        held: Array = np.where(when, plain / replicas + routed / expert_replicas, plain + routed)
        return bytes_each * held

    dense_kept, sparse_kept, dense_work, sparse_work = activation
    kept = flight * (dense * dense_kept + sparse * sparse_kept)
    working = np.where(L.recompute == FULL, np.maximum(dense_work * (dense > 0), sparse_work * (sparse > 0)), 0.0)
    widest = np.maximum(parts.dense_layer * (dense > 0), (parts.sparse_layer + parts.experts) * (sparse > 0))
    tokens = L.micro_batch * job.seq_len / L.cp
    logits = np.where(has_head, tokens * shape.vocab_size / L.tp * 6, 0.0)  # bf16, and fp32 for the loss
    weights, gradients = shared(WEIGHT_BYTES, z3), shared(job.gradient_bytes, z2)
    optimizer = shared(job.optimizer_bytes, z1)
    gathered = np.where(z3, 2 * WEIGHT_BYTES * widest, 0.0)  # the layer at work and the one being fetched
    activations = kept + working
    allocated = weights + gradients + optimizer + gathered + activations + logits
    return Memory(
        weights, gradients, optimizer, gathered, activations, logits, CONTEXT_BYTES + FRAGMENTATION * allocated
    )


def dense_layers(shape: Shape, L: Layouts, layers: Array, first: bool) -> Array:
    """Layers without experts among `layers` of a stage.

    They come first in the model; where they do not all fit the first stage (every second layer is sparse, say) they
    are spread evenly.
    """
    if not shape.sparse_layers:
        return layers + 0.0
    few = shape.n_layers // L.pp
    spread = layers * (shape.dense_layers / shape.n_layers)
    together = (shape.dense_layers <= few) & (not shape.dense_at)
    return np.where(together, float(shape.dense_layers) * first, spread)


def layer_activations(shape: Shape, job: Job, L: Layouts, stack: Stack) -> tuple[Array, Array, Array, Array]:
    """Bytes of one micro-batch in one layer: kept for the backward pass by a dense and by a sparse layer, and whole."""
    tp = L.tp
    d, h = shape.d_model, shape.n_heads
    tokens = L.micro_batch * job.seq_len / L.cp
    split = tp if stack.sequence_parallel else np.ones_like(tp)
    mask = d / split if stack.dropout else 0.0
    operands: Array
    if a := shape.latent:
        operands = (
            2 * (a.kv_rank + a.rope_dim + (a.q_rank or 0))
            + 2 * h * (2 * (a.nope_dim + a.rope_dim) + 2 * a.value_dim) / tp
        )
    else:
        kv = 2 * shape.n_kv_heads * shape.head_dim / np.minimum(tp, shape.n_kv_heads)
        operands = 4 * h * shape.head_dim / tp + 2 * kv  # queries, attention's output, keys and values
    core = (4 * h if stack.flash else (5 if stack.dropout else 4) * h * job.seq_len) / tp
    norm_and_input = 4 * d / split  # input of the norm, input of the projection
    selective, full = L.recompute == SELECTIVE, L.recompute == FULL
    # Without flash attention the scores are what selective recomputation drops (Korthikanti et al.); with it, the
    # outputs of norms and of the activation function are.
    core = core * ~selective if not stack.flash else core
    saved = selective & stack.flash
    norm_kept = np.where(saved, 2 * d / split, norm_and_input)
    attention = norm_kept + operands + core + mask

    def block(width: int, share: Array) -> Array:
        kept: Array = 2 * width * (shape.ffn_matrices - saved) / share
        return kept

    dense = attention + norm_kept + block(shape.d_ff, tp) + mask
    routed = shape.top_k * job.imbalance * np.where(L.etp > 1, 1.0, 1 / tp)  # copies of a token on this rank
    sparse = attention + norm_kept + 4 * shape.n_experts / split
    if shape.sparse_layers:
        sparse = sparse + routed * (4 * d + block(shape.d_expert, L.etp))
    if shape.n_shared:
        sparse = sparse + block(shape.d_shared, tp)
    boundary = 2 * d / split
    return (
        tokens * np.where(full, boundary, dense),
        tokens * np.where(full, boundary, sparse),
        tokens * dense,
        tokens * sparse,
    )


def _heavier(one: Memory, other: Memory, counts: Array) -> Memory:
    """Of two stages the one that needs more, where the second exists at all."""
    second = (other.total > one.total) & counts
    if not second.any():
        return one
    return Memory(*(np.where(second, getattr(other, n), getattr(one, n)) for n in Memory.__dataclass_fields__))
