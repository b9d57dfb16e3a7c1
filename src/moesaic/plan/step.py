"""Time of one training step, for many layouts at once.

A micro-batch takes, on each stage, the sum over its operators of arithmetic at the reachable peak and traffic at the
reachable bandwidth (so that small products lose efficiency), collectives as latency plus bytes over bandwidth, and host
stalls. A step is all micro-batches on the slowest stage, the filling of the pipeline, and what of the gradient exchange
and the optimizer stays exposed.
"""

from dataclasses import dataclass

import numpy as np

from moesaic.plan.device import Device
from moesaic.plan.job import Job
from moesaic.plan.layer import LayerTime, layer_times
from moesaic.plan.layouts import FULL, Array, Layouts
from moesaic.plan.memory import WEIGHT_BYTES
from moesaic.plan.placement import Stage, slowest_candidates, stage
from moesaic.plan.rank import on_rank
from moesaic.plan.shape import Shape
from moesaic.plan.stack import Stack

ZERO_BUBBLE_FILL = 1 / 3  # ZB-H1 leaves (p - 1)(F + B - W), and F = B = W (Qi et al. 2024, arXiv:2401.10241, tab. 1)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, by what they are spent on. Their sum is the step."""

    gemm: Array
    attention: Array
    elementwise: Array
    recompute: Array
    tensor_parallel: Array
    expert_parallel: Array
    context_parallel: Array
    stalls: Array  # the host, and waiting for the slowest expert
    pipeline: Array  # sending activations and gradients between stages
    bubble: Array
    data_parallel: Array
    optimizer: Array
    pace: Array  # what the stack needs beyond the model
    micro_batches: Array
    bubble_fraction: Array

    @property
    def total(self) -> Array:
        """Seconds of the step."""
        return sum(getattr(self, name) for name in PARTS)  # type: ignore[no-any-return]


PARTS = tuple(n for n in StepTime.__dataclass_fields__ if n not in ("micro_batches", "bubble_fraction"))


def step_time(
    shape: Shape,
    job: Job,
    layouts: Layouts,
    device: Device,
    stack: Stack,
    layers: Array | None = None,
    micro_batches: Array | None = None,
) -> StepTime:
    """Seconds of a step of each layout. Every layout must pass `layouts.valid`.

    `layers` is how many the slowest stage holds, without it as many as an even split leaves on one; `micro_batches`
    how many a replica takes, without it those of the job's batch.
    """
    L = layouts.floats
    m = L.micro_batches(job.batch) if micro_batches is None else micro_batches
    times = layer_times(shape, job, L, device, stack)
    again = L.recompute == FULL
    slow_dense, slow_sparse = (t.forward * (1 + again) + t.backward for t in (times.dense, times.sparse))
    head = 3 * times.head
    place, per_micro = _slowest(shape, L, slow_dense, slow_sparse, head, layers)
    dense, sparse, head = place.dense, place.sparse, np.where(place.last(L), head, 0.0)
    both = LayerTime(*(dense * d + sparse * s for d, s in zip(times.dense.parts, times.sparse.parts, strict=True)))
    # The first micro-batch passes all other stages before the last can start, the last one after: their times, divided
    # among chunks.
    if layers is None:
        model = (shape.n_layers - shape.sparse_layers) * slow_dense + shape.sparse_layers * slow_sparse + 3 * times.head
        others = np.where(L.pp > 1, model - per_micro, 0.0)
    else:
        others = (L.pp - 1) * (per_micro - head)
    kept = ZERO_BUBBLE_FILL if job.zero_bubble else 1.0
    fill = (L.pp - 1) / L.chunks * kept
    bubble = others / L.chunks * kept

    # Sending between stages: once forward, once backward for each chunk, and in the filling.
    across = L.tp * L.cp * L.dp >= device.domain  # stages of one replica lie in different domains
    link = np.where(across, device.network_gb_s * stack.network, device.domain_gb_s * stack.domain) * 1e9
    tokens = L.micro_batch * (job.seq_len / L.cp)
    sent = 2 * tokens * shape.d_model / L.tp / link + stack.latency_us * 1e-6
    pipeline = np.where(L.pp > 1, 2 * sent * (m * L.chunks * stack.exposed_pp + L.pp - 1), 0.0)

    parts = on_rank(shape, L)
    plain = dense * parts.dense_layer + sparse * parts.sparse_layer + parts.outside(place, L)
    routed = sparse * parts.experts
    data = exchange(job, L, device, stack, plain, routed, m, both.forward + both.backward + head)
    held = np.where(L.zero >= 1, plain / (L.dp * L.cp) + routed / L.edp, plain + routed)
    traffic = held * (2 * job.optimizer_bytes + job.gradient_bytes + WEIGHT_BYTES)
    optimizer = traffic / (device.memory_tb_s * 1e12 * stack.memory) + stack.step_ms * 1e-3
    gemm = m * (both.gemm + head)
    # Over a grid, what depends on few degrees is added up first.
    modelled = (m * per_micro + bubble + pipeline) + data + optimizer if stack.pace != 1 else np.zeros_like(bubble)
    return StepTime(
        gemm=gemm,
        attention=m * both.attention,
        elementwise=m * both.elementwise,
        recompute=m * (both.forward * again),
        tensor_parallel=m * both.tensor_parallel,
        expert_parallel=m * both.expert_parallel,
        context_parallel=m * both.context_parallel,
        stalls=m * both.stalls,
        pipeline=pipeline,
        bubble=bubble,
        data_parallel=data,
        optimizer=optimizer,
        pace=(stack.pace - 1) * modelled,
        micro_batches=m,
        bubble_fraction=fill / (m + fill),
    )


def _slowest(
    shape: Shape, L: Layouts, dense: Array, sparse: Array, head: Array, layers: Array | None
) -> tuple[Stage, Array]:
    """The stage that takes longest, and its seconds on a micro-batch, from those of a layer of each kind."""

    def took(place: Stage) -> Array:
        out: Array = place.dense * dense + place.sparse * sparse + np.where(place.last(L), head, 0.0)
        return out

    if layers is not None:
        given = stage(shape, L, L.pp - 1, layers)
        return given, took(given)
    first, *rest = slowest_candidates(shape, L)
    best = stage(shape, L, first)
    longest = took(best)
    for index in rest:
        other = stage(shape, L, index)
        longer = took(other) > longest
        longest = np.where(longer, took(other), longest)
        best = Stage(*(np.where(longer, getattr(other, n), getattr(best, n)) for n in vars(best)))
    return best, longest


def exchange(
    job: Job,
    L: Layouts,
    device: Device,
    stack: Stack,
    plain: Array,
    routed: Array,
    m: Array,
    busy: Array,
) -> Array:
    """Exposed seconds of gradient reduction and parameter gathering in a step."""
    dense_rate = group_rate(device, stack, L.dp * L.cp, L.tp)
    expert_rate = group_rate(device, stack, L.edp, L.ep * L.etp)
    dense_share, expert_share = 1 - 1 / (L.dp * L.cp), 1 - 1 / L.edp

    def seconds(bytes_each: float) -> Array:
        return bytes_each * (plain * dense_share / dense_rate + routed * expert_share / expert_rate)

    gradients, weights = seconds(job.gradient_bytes), seconds(WEIGHT_BYTES)
    # Once a step: all-reduce; or (ZeRO-1, ZeRO-2) reduce-scatter, and all-gather of updated weights. Gradients are
    # whole in the last micro-batch only and weights needed in the first, so one micro-batch at most can hide them.
    whole = gradients + np.where(L.zero >= 1, weights, gradients)
    once = np.maximum(whole * stack.exposed_dp, whole - busy)
    # ZeRO-3 gathers for the forward and again for the backward pass, and scatters gradients, in every micro-batch.
    # It hides behind the arithmetic as far as that lasts.
    each = 2 * weights + gradients
    exposed = np.maximum(each - busy, 0.0) + stack.exposed_zero3 * np.minimum(each, busy)
    out: Array = np.where(L.zero >= 3, m * exposed, once)
    return out


def group_rate(device: Device, stack: Stack, size: Array, inside: Array) -> Array:
    """Bytes/s of one member of a group of `size` ranks, `inside` ranks apart (ranks that lie between neighbours).

    Members that share a domain share its network cards: a ring enters and leaves a node once for all of them.
    """
    fast, slow = device.domain_gb_s * stack.domain * 1e9, device.network_gb_s * stack.network * 1e9
    neighbours = np.maximum(np.minimum(device.domain // np.maximum(inside, 1), size), 1) if stack.rails else 1
    return np.where(size * inside <= device.domain, fast, np.minimum(slow * neighbours, fast))
