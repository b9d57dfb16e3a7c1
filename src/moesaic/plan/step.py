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
from moesaic.plan.memory import WEIGHT_BYTES, dense_layers, on_rank
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
    shape: Shape, job: Job, layouts: Layouts, device: Device, stack: Stack, layers: Array | None = None
) -> StepTime:
    """Seconds of a step of each layout. Every layout must pass `layouts.valid`.

    `layers` is how many the slowest stage holds, without it as many as an even split leaves on one.
    """
    L = layouts.floats
    m = L.micro_batches(job.batch)
    layers = np.ceil(shape.n_layers / L.pp) if layers is None else layers
    sparse = layers - dense_layers(shape, L, layers, False)
    dense = layers - sparse
    times = layer_times(shape, job, L, device, stack)
    both = LayerTime(*(dense * d + sparse * s for d, s in zip(times.dense.parts, times.sparse.parts, strict=True)))
    head = times.head
    recompute = np.where(L.recompute == FULL, both.forward, 0.0)
    per_micro = both.forward + both.backward + recompute + 3 * head
    mean = per_micro - 3 * head * (1 - 1 / L.pp)  # stages without head are faster
    fill = (L.pp - 1) / L.chunks * (ZERO_BUBBLE_FILL if job.zero_bubble else 1.0)
    bubble = fill * mean

    # Sending between stages: once forward, once backward for each chunk, and in the filling.
    across = L.tp * L.cp * L.dp >= device.domain  # stages of one replica lie in different domains
    link = np.where(across, device.network_gb_s * stack.network, device.domain_gb_s * stack.domain) * 1e9
    tokens = L.micro_batch * (job.seq_len / L.cp)
    sent = 2 * tokens * shape.d_model / L.tp / link + stack.latency_us * 1e-6
    pipeline = np.where(L.pp > 1, 2 * sent * (m * L.chunks * stack.exposed_pp + L.pp - 1), 0.0)

    parts = on_rank(shape, L)
    plain = dense * parts.dense_layer + sparse * parts.sparse_layer + parts.embedding
    routed = sparse * parts.experts
    data = exchange(job, L, device, stack, plain, routed, m, (both.forward + both.backward + 3 * head))
    held = np.where(L.zero >= 1, plain / (L.dp * L.cp) + routed / L.edp, plain + routed)
    traffic = held * (2 * job.optimizer_bytes + job.gradient_bytes + WEIGHT_BYTES)
    optimizer = traffic / (device.memory_tb_s * 1e12 * stack.memory) + stack.step_ms * 1e-3
    gemm = m * (both.gemm + 3 * head)
    # Over a grid, what depends on few degrees is added up first.
    modelled = (m * per_micro + bubble + pipeline) + data + optimizer if stack.pace != 1 else np.zeros_like(bubble)
    return StepTime(
        gemm=gemm,
        attention=m * both.attention,
        elementwise=m * both.elementwise,
        recompute=m * recompute,
        tensor_parallel=m * both.tensor_parallel,
        expert_parallel=m * both.expert_parallel,
        stalls=m * both.stalls,
        pipeline=pipeline,
        bubble=bubble,
        data_parallel=data,
        optimizer=optimizer,
        pace=(stack.pace - 1) * modelled,
        micro_batches=m,
        bubble_fraction=fill / (m + fill),
    )


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

    once = seconds(job.gradient_bytes + WEIGHT_BYTES) * stack.exposed_dp
    # ZeRO-3 gathers for the forward and again for the backward pass, and scatters gradients, in every micro-batch.
    # It hides behind the arithmetic as far as that lasts.
    each = seconds(2 * WEIGHT_BYTES + job.gradient_bytes)
    exposed = np.maximum(each - busy, 0.0) + stack.exposed_zero3 * np.minimum(each, busy)
    return np.where(L.zero >= 3, m * exposed, once)


def group_rate(device: Device, stack: Stack, size: Array, inside: Array) -> Array:
    """Bytes/s of one member of a group of `size` ranks, `inside` ranks apart (ranks that lie between neighbours).

    Members that share a domain share its network cards: a ring enters and leaves a node once for all of them.
    """
    fast, slow = device.domain_gb_s * stack.domain * 1e9, device.network_gb_s * stack.network * 1e9
    neighbours = np.maximum(np.minimum(device.domain // np.maximum(inside, 1), size), 1) if stack.rails else 1
    return np.where(size * inside <= device.domain, fast, np.minimum(slow * neighbours, fast))
