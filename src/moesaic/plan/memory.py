"""Memory of one device, for many layouts at once: always that of the heaviest pipeline stage.

Activations follow Korthikanti et al. 2022 (arXiv:2205.05198, eqs. 1 to 6), taken apart into their operands so that
grouped-query and latent attention, gated blocks and experts are priced too. `reference.py` says the same term by term.
"""

from dataclasses import dataclass

import numpy as np

from moesaic.plan.job import Job
from moesaic.plan.layouts import FULL, SELECTIVE, Array, Layouts
from moesaic.plan.placement import Stage, heaviest_candidates, in_flight, stage
from moesaic.plan.rank import RankParameters, heads_on_rank, on_rank
from moesaic.plan.reserve import COLLECTIVE_BYTES, DRIVER_BYTES, WORKSPACE_BYTES
from moesaic.plan.shape import Shape
from moesaic.plan.stack import Stack

RESERVED_BYTES = DRIVER_BYTES + COLLECTIVE_BYTES + WORKSPACE_BYTES  # 1.5 GB
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
class _Stage:
    """What one pipeline stage holds on a rank: parameters, and bytes that no sharding of parameters changes."""

    plain: Array  # parameters that all ranks of an expert group share
    routed: Array
    gathered: Array  # parameters of layers that ZeRO-3 holds whole
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
    for load in _stages(shape, job, L, stack):
        size = _allocated(load, each)
        if best is None:
            best, most = load, size
        elif (heavier := size > most).any():
            most = np.where(heavier, size, most)
            best = _Stage(*(np.where(heavier, getattr(load, n), getattr(best, n)) for n in vars(best)))
    assert best is not None

    def held(per_parameter: tuple[Array, Array]) -> Array:
        both: Array = best.plain * per_parameter[0] + best.routed * per_parameter[1]
        return both

    return Memory(
        weights=held(each.weights),
        gradients=held(each.gradients),
        optimizer=held(each.optimizer),
        gathered=best.gathered * each.gathered,
        activations=best.activations,
        logits=best.logits,
        reserve=RESERVED_BYTES + FRAGMENTATION * most,
    )


@dataclass(frozen=True)
class Held:
    """What one device holds between two steps and until gradients are reduced; activations apart."""

    parameters: Array  # of its stage, before replicas divide anything
    weights: Array  # bytes, as the two below
    gradients: Array
    optimizer: Array


def held(shape: Shape, job: Job, layouts: Layouts, index: Array) -> Held:
    """What a device of the stage at `index` (0 to pp - 1) holds."""
    L = layouts.floats
    plain, routed = _parameters(on_rank(shape, L), stage(shape, L, index), L)
    each = _bytes(job, L)
    kinds = (each.weights, each.gradients, each.optimizer)
    return Held(plain + routed, *(plain * of_plain + routed * of_routed for of_plain, of_routed in kinds))


def memory_total(shape: Shape, job: Job, layouts: Layouts, stack: Stack, micro_batches: Array | None = None) -> Array:
    """`memory(...).total` without its parts, several times faster.

    `micro_batches` is how many a replica takes, without it those of the job's batch.
    """
    L = layouts.floats
    each = _bytes(job, L)
    most: Array | None = None
    for load in _stages(shape, job, L, stack, micro_batches):
        size = _allocated(load, each)
        most = size if most is None else np.maximum(most, size, out=most if most.shape == size.shape else None)
    assert most is not None
    return RESERVED_BYTES + (1 + FRAGMENTATION) * most


def stage_total(shape: Shape, job: Job, layouts: Layouts, stack: Stack, layers: Array, index: Array) -> Array:
    """Bytes on a device of the stage at `index` (0 to pp - 1) when it holds `layers` layers."""
    L = layouts.floats
    parts, kept, m = on_rank(shape, L), layer_activations(shape, job, L, stack), L.micro_batches(job.batch)
    place, flight = stage(shape, L, index, layers), in_flight(L, m, index, job.zero_bubble)
    size = _allocated(stage_load(shape, job, L, parts, kept, place, flight), _bytes(job, L))
    return RESERVED_BYTES + (1 + FRAGMENTATION) * size


def _allocated(load: _Stage, each: _Bytes) -> Array:
    """Bytes of a stage. Over a grid only the last sum has its full size."""
    plain, routed = each.all
    states = load.plain * plain + load.routed * routed + load.gathered * each.gathered
    out: Array = states + (load.activations + load.logits)
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
        gathered=np.where(L.zero >= 3, WEIGHT_BYTES, 0.0),
    )


def _stages(shape: Shape, job: Job, L: Layouts, stack: Stack, micro_batches: Array | None = None) -> list[_Stage]:
    """The stages one of which is the heaviest."""
    parts, kept = on_rank(shape, L), layer_activations(shape, job, L, stack)
    m = L.micro_batches(job.batch) if micro_batches is None else micro_batches
    return [
        stage_load(shape, job, L, parts, kept, stage(shape, L, i), in_flight(L, m, i, job.zero_bubble))
        for i in heaviest_candidates(shape, L)
    ]


def stage_load(
    shape: Shape,
    job: Job,
    L: Layouts,
    parts: RankParameters,
    kept: tuple[Array, Array, Array, Array],
    place: Stage,
    flight: Array,
) -> _Stage:
    """What `place` holds with `flight` micro-batches in flight."""
    dense, sparse = place.dense, place.sparse
    dense_kept, sparse_kept, dense_work, sparse_work = kept
    working = np.where(L.recompute == FULL, np.maximum(dense_work * (dense > 0), sparse_work * (sparse > 0)), 0.0)
    # ZeRO-3 holds the layer at work and the one being fetched; what one rank owns alone need not be gathered.
    plain_shared, routed_shared = L.dp * L.cp > 1, L.edp > 1
    widest = np.maximum(
        parts.dense_layer * plain_shared * (dense > 0),
        (parts.sparse_layer * plain_shared + parts.experts * routed_shared) * (sparse > 0),
    )
    tokens = L.micro_batch * (job.seq_len / L.cp)
    plain, routed = _parameters(parts, place, L)
    return _Stage(
        plain=plain,
        routed=routed,
        gathered=np.minimum(dense + sparse, 2) * widest,
        activations=flight * (dense * dense_kept + sparse * sparse_kept) + working,
        # bf16, and fp32 for the loss
        logits=np.where(place.last(L), tokens * (shape.vocab_size / L.tp * 6), 0.0),
    )


def _parameters(parts: RankParameters, place: Stage, L: Layouts) -> tuple[Array, Array]:
    """Parameters of a stage on one device: outside the experts and in them."""
    plain: Array = place.dense * parts.dense_layer + place.sparse * parts.sparse_layer + parts.outside(place, L)
    return plain, place.sparse * parts.experts


def layer_activations(shape: Shape, job: Job, L: Layouts, stack: Stack) -> tuple[Array, Array, Array, Array]:
    """Bytes of one micro-batch in one layer: kept for the backward pass by a dense and by a sparse layer; and what full
    recomputation makes of each beside the input that it kept."""
    tp, d, h = L.tp, shape.d_model, shape.n_heads
    tokens = L.micro_batch * (job.seq_len / L.cp)
    split = tp if stack.sequence_parallel else np.ones_like(tp)
    mask = d / split if stack.dropout else 0.0
    selective, full = L.recompute == SELECTIVE, L.recompute == FULL
    # Without flash attention the scores are what selective recomputation drops (Korthikanti et al.); with it, the
    # outputs of norms and of the activation function are.
    saved = selective & stack.flash
    again = np.where(saved, 0.0, 1.0)  # the output of a norm, beside its input

    heads = heads_on_rank(shape, tp)
    operands = 2 * heads.all
    if a := shape.latent:
        latents = a.kv_rank + (a.q_rank or 0)
        operands = operands + 2 * (latents + a.rope_dim + again * latents) / split
    if shape.qk_norm:
        operands = operands + 2 * again * (heads.queries + heads.keys)
    # Attention's output with the logarithm of each sum in fp32; or softmax, its dropout's mask and output.
    core = 4 * h / tp if stack.flash else np.where(selective, 0.0, (5 if stack.dropout else 2) * h * job.seq_len / tp)
    before = min(shape.norms, 2)  # norms before a block; further ones follow it, and only their inputs are kept
    norms = 2 * d * (before * (1 + again) + shape.norms - before) / split
    attention = norms + operands + core + 2 * mask

    def block(width: int, share: Array) -> Array:
        kept: Array = 2 * width * (shape.ffn_matrices - saved) / share
        return kept

    dense = attention + block(shape.d_ff, tp)
    sparse = attention + 4 * shape.n_experts / split
    if shape.sparse_layers:
        routed = shape.top_k * job.imbalance * np.where(L.etp > 1, 1.0, 1 / tp)  # copies of a token on this rank
        sparse = sparse + routed * (4 * d + block(shape.d_expert, L.etp))
    if shape.n_shared:
        sparse = sparse + block(shape.d_shared, tp)
    boundary = 2 * d / split
    return (
        tokens * np.where(full, boundary, dense),
        tokens * np.where(full, boundary, sparse),
        tokens * (dense - boundary),
        tokens * (sparse - boundary),
    )
