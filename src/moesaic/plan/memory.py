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


@dataclass(frozen=True)
class _Stage:
    """What one pipeline stage holds on a rank: parameters, and bytes that no sharding of parameters changes."""

    plain: Array  # parameters that all ranks of an expert group share
    routed: Array
    widest: Array  # parameters of the largest layer
    activations: Array
    logits: Array


@dataclass(frozen=True)
class _Bytes:
    """Bytes per parameter outside the experts and in them, after ZeRO's sharding."""

    weights: tuple[Array, Array]
    gradients: tuple[Array, Array]
    optimizer: tuple[Array, Array]
    gathered: Array

    @property
    def all(self) -> tuple[Array, Array]:
        """Weights, gradients and optimizer together."""
        plain, routed = zip(self.weights, self.gradients, self.optimizer, strict=True)
        return sum(plain), sum(routed)  # type: ignore[return-value]


def memory(shape: Shape, job: Job, layouts: Layouts, stack: Stack) -> Memory:
    """Memory of each layout, on the stage that needs most."""
    L = layouts.floats
    each = _bytes(job, L)
    best: _Stage | None = None
    most: Array = np.zeros(())
    for stage, exists in _stages(shape, job, L, stack):
        size = _allocated(stage, each)
        if best is None:
            best, most = stage, size
        elif (heavier := (size > most) & exists).any():
            most = np.where(heavier, size, most)
            best = _Stage(*(np.where(heavier, getattr(stage, n), getattr(best, n)) for n in vars(best)))
    assert best is not None

    def held(per_parameter: tuple[Array, Array]) -> Array:
        return best.plain * per_parameter[0] + best.routed * per_parameter[1]

    return Memory(
        weights=held(each.weights),
        gradients=held(each.gradients),
        optimizer=held(each.optimizer),
        gathered=best.widest * each.gathered,
        activations=best.activations,
        logits=best.logits,
        reserve=CONTEXT_BYTES + FRAGMENTATION * most,
    )


def memory_total(shape: Shape, job: Job, layouts: Layouts, stack: Stack) -> Array:
    """`memory(...).total` without its parts, several times faster."""
    L = layouts.floats
    each = _bytes(job, L)
    most: Array | None = None
    for stage, exists in _stages(shape, job, L, stack):
        size = _allocated(stage, each, exists)
        most = size if most is None else np.maximum(most, size, out=most if most.shape == size.shape else None)
    assert most is not None
    return CONTEXT_BYTES + (1 + FRAGMENTATION) * most


def _allocated(stage: _Stage, each: _Bytes, exists: Array | bool = True) -> Array:
    """Bytes of a stage, 0 where it does not exist. Over a grid only the last sum has its full size."""
    plain, routed = each.all
    states = stage.plain * plain + stage.routed * routed + stage.widest * each.gathered
    rest = stage.activations + stage.logits
    if exists is not True:
        states, rest = states * exists, rest * exists
    out: Array = states + rest
    return out


def _bytes(job: Job, L: Layouts) -> _Bytes:
    replicas, expert_replicas = L.dp * L.cp, L.edp

    def each(size: int, zero: int) -> tuple[Array, Array]:
        sharded = L.zero >= zero
        return np.where(sharded, size / replicas, size), np.where(sharded, size / expert_replicas, size)

    return _Bytes(
        weights=each(WEIGHT_BYTES, 3),
        gradients=each(job.gradient_bytes, 2),
        optimizer=each(job.optimizer_bytes, 1),
        gathered=np.where(L.zero >= 3, 2.0 * WEIGHT_BYTES, 0.0),  # the layer at work and the one being fetched
    )


def _stages(shape: Shape, job: Job, L: Layouts, stack: Stack) -> list[tuple[_Stage, Array | bool]]:
    """The stages one of which is the heaviest, and where each exists beside the others."""
    few = np.floor(shape.n_layers / L.pp)
    more = shape.n_layers - few * L.pp  # stages, the last ones, that hold one layer more
    first_heavy = np.where(more > 0, np.minimum(more, L.pp), L.pp)  # stages from there to the end
    single = L.pp == 1
    parts = on_rank(shape, L)
    kept = layer_activations(shape, job, L, stack)
    in_flight = np.minimum(L.pp, L.micro_batches(job.batch))
    if not job.zero_bubble:
        in_flight = in_flight * np.where(L.chunks > 1, 1 + (L.pp - 1) / (L.pp * L.chunks), 1)
    head = shape.vocab_size * shape.d_model / L.tp
    untied = 0 if shape.tied else 1
    last = few + (more > 0)

    def stage(layers: Array, flight: Array, vocabulary: Array, has_head: Array | bool, first: bool = False) -> _Stage:
        return stage_load(shape, job, L, parts, kept, layers, flight, vocabulary, has_head, first)

    none = np.zeros(())
    middle = L.pp > 2
    return [
        (stage(few, in_flight, parts.embedding + np.where(single, untied * head, 0), single, first=True), True),
        (stage(few + (more >= L.pp - 1), in_flight * ((L.pp - 1) / L.pp), none, False), middle),
        (stage(last, in_flight * (first_heavy / L.pp), none, False), middle),
        (stage(last, in_flight / L.pp, np.where(single, parts.embedding + untied * head, head), True), True),
    ]


def stage_load(
    shape: Shape,
    job: Job,
    L: Layouts,
    parts: RankParameters,
    kept: tuple[Array, Array, Array, Array],
    layers: Array,
    flight: Array,
    vocabulary: Array,
    has_head: bool | Array,
    first: bool,
) -> _Stage:
    """A stage of `layers` layers with `flight` micro-batches in flight and `vocabulary` parameters beside them."""
    dense = dense_layers(shape, L, layers, first)
    sparse = layers - dense
    dense_kept, sparse_kept, dense_work, sparse_work = kept
    working = np.where(L.recompute == FULL, np.maximum(dense_work * (dense > 0), sparse_work * (sparse > 0)), 0.0)
    tokens = L.micro_batch * (job.seq_len / L.cp)
    return _Stage(
        plain=dense * parts.dense_layer + sparse * parts.sparse_layer + vocabulary,
        routed=sparse * parts.experts,
        widest=np.maximum(parts.dense_layer * (dense > 0), (parts.sparse_layer + parts.experts) * (sparse > 0)),
        activations=flight * (dense * dense_kept + sparse * sparse_kept) + working,
        # bf16, and fp32 for the loss
        logits=np.where(has_head, tokens * (shape.vocab_size / L.tp * 6), 0.0),
    )


def dense_layers(shape: Shape, L: Layouts, layers: Array, first: bool) -> Array:
    """Layers without experts among `layers` of a stage.

    They come first in the model; where they do not all fit the first stage (every second layer is sparse, say) they
    are spread evenly.
    """
    if not shape.sparse_layers:
        return layers + 0.0
    few = np.floor(shape.n_layers / L.pp)
    spread = layers * (shape.dense_layers / shape.n_layers)
    together = (shape.dense_layers <= few) & (not shape.dense_at)
    return np.where(together, float(shape.dense_layers) * first, spread)


def layer_activations(shape: Shape, job: Job, L: Layouts, stack: Stack) -> tuple[Array, Array, Array, Array]:
    """Bytes of one micro-batch in one layer: kept for the backward pass by a dense and by a sparse layer, and whole."""
    tp = L.tp
    d, h = shape.d_model, shape.n_heads
    tokens = L.micro_batch * (job.seq_len / L.cp)
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
