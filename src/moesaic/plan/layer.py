"""Time of one layer on one micro-batch, by what it is spent on; and of the output head."""

from dataclasses import dataclass

import numpy as np

from moesaic.plan.device import Device
from moesaic.plan.flops import visible_tokens
from moesaic.plan.job import Job
from moesaic.plan.layouts import SELECTIVE, Array, Layouts
from moesaic.plan.rank import attention_on_rank, heads_on_rank
from moesaic.plan.shape import Shape
from moesaic.plan.stack import Stack

TILE = 128  # rows that a matrix product computes together: an expert's last tile is half empty on average
BACKWARD = 2.0  # of forward: two products for each
FLASH_BACKWARD = 2.5  # the scores are computed again (Dao et al. 2022)


@dataclass(frozen=True)
class LayerTime:
    """Seconds, forward and backward together except `forward`."""

    forward: Array
    backward: Array
    gemm: Array
    attention: Array
    elementwise: Array
    tensor_parallel: Array
    expert_parallel: Array
    context_parallel: Array
    stalls: Array

    @property
    def parts(self) -> tuple[Array, ...]:
        """All fields in order."""
        return tuple(getattr(self, name) for name in LayerTime.__dataclass_fields__)


@dataclass(frozen=True)
class LayerTimes:
    """A dense layer, a sparse layer, and the forward of the output head with its loss."""

    dense: LayerTime
    sparse: LayerTime
    head: Array


def layer_times(shape: Shape, job: Job, layouts: Layouts, device: Device, stack: Stack) -> LayerTimes:
    """Seconds of the layers of a stage on one micro-batch of each layout."""
    L = layouts.floats
    tp, d = L.tp, shape.d_model
    tokens = L.micro_batch * (job.seq_len / L.cp)
    split = tp if stack.sequence_parallel else np.ones_like(tp)
    peak = device.peak(job.precision) * stack.rate(stack.gemm, device.generation)
    peak *= 1.0 if job.precision in ("bf16", "fp16") else stack.low_precision
    bandwidth = device.memory_tb_s * 1e12 * stack.memory

    def product(weights: Array | float, rows: Array, moved: Array | float) -> Array:
        """Rows times `weights` elements, `moved` values read and written."""
        seconds: Array = 2 * weights * rows / peak + 2 * (weights + moved) / bandwidth
        return seconds

    # attention: projections down to latents are whole on each rank, for the tokens that the rank norms
    heads = heads_on_rank(shape, tp)
    split_weights, whole_weights = attention_on_rank(shape, tp)
    widths = d + heads.all + d  # queries, keys and values from one product
    if a := shape.latent:
        read = a.q_rank or d
        widths = read + heads.queries + a.kv_rank + shape.n_heads * (a.nope_dim + a.value_dim) / tp + heads.output + d
    attention_gemm = product(split_weights, tokens, tokens * widths)
    latents = 0
    if a := shape.latent:
        latents = a.kv_rank + (a.q_rank or 0)
        down = d + a.kv_rank + a.rope_dim + (d + a.q_rank if a.q_rank else 0)
        attention_gemm = attention_gemm + product(whole_weights, tokens / split, tokens / split * down)
    if shape.attention_extra:
        attention_gemm = attention_gemm + product(shape.attention_extra, tokens, 0.0)
    core, core_backward = _core(shape, job, L, device, stack, tokens)
    # feed-forward
    dense_gemm = product(
        shape.ffn_matrices * d * shape.d_ff / tp, tokens, tokens * (2 * d + shape.ffn_matrices * shape.d_ff / tp)
    )
    copies = np.where(L.etp > 1, 1.0, 1 / tp) * shape.top_k  # of a token, on this rank
    routed = tokens * copies * job.imbalance
    held = shape.n_experts / L.ep  # experts on a rank
    expert_width = shape.ffn_matrices * shape.d_expert / L.etp
    padded = 1 + TILE / 2 / np.maximum(routed / held, 1)
    expert_gemm = (
        2 * d * expert_width * routed * padded / peak
        + 2 * (held * d * expert_width + routed * (2 * d + expert_width)) / bandwidth
    )
    if shape.n_shared:
        wide = shape.ffn_matrices * shape.d_shared / tp
        expert_gemm = expert_gemm + product(d * wide, tokens, tokens * (2 * d + wide))
    router_gemm = product(d * shape.n_experts, tokens / split, tokens / split * (d + shape.n_experts))
    # element-wise traffic, in values: norms (read, write), two residuals (two reads, a write), queries, keys, values
    # and output once in and out (rotation, layout), activation functions; tokens permuted to their experts and back
    passes = (2 * (shape.norms * d + latents) + 6 * d) / split + 2 * heads.all
    if shape.qk_norm:
        passes = passes + 2 * (heads.queries + heads.keys)
    values = 2 * stack.elementwise / bandwidth
    dense_element = values * tokens * (passes + shape.ffn_matrices * shape.d_ff / tp)
    sparse_element = values * (tokens * passes + routed * (8 * d + expert_width))
    if shape.n_shared:
        sparse_element = sparse_element + values * tokens * wide
    # collectives
    reduce_ = all_reduce(device, stack, 2 * tokens * d, tp) * stack.exposed_tp
    experts_split = all_reduce(device, stack, 2 * routed * d, L.etp) * stack.exposed_tp
    sparse_tp = reduce_ + experts_split
    dense_tp = reduce_ if shape.parallel_block else 2 * reduce_
    if shape.n_shared:
        sparse_tp = sparse_tp + reduce_
    all_to_all = 2 * _all_to_all(L, device, stack, 2 * tokens / tp * shape.top_k * job.imbalance * d) * stack.exposed_ep

    # Blocks of keys and values go round the ring while others are multiplied; their gradients too on the way back
    # (Liu et al. 2023, arXiv:2310.01889, sec. 3). Only what takes longer than the arithmetic shows.
    ring = _ring(L, device, stack, 2 * tokens * (heads.keys + heads.values))
    context = np.maximum(ring - core, 0.0), np.maximum(2 * ring - core_backward, 0.0)

    zero = np.zeros_like(core)
    attention = core, core_backward, context
    host = stack.layer_us * 1e-6, 0.0
    dense = _layer(attention_gemm + dense_gemm, attention, dense_element, dense_tp, zero, host)
    host = stack.sparse_us * 1e-6, stack.sync_us * 1e-6
    sparse_gemm = attention_gemm + router_gemm + expert_gemm
    sparse = _layer(sparse_gemm, attention, sparse_element, sparse_tp, all_to_all, host)
    vocabulary = shape.vocab_size / tp
    head = product(d * vocabulary, tokens, tokens * (d + vocabulary)) + 8 * tokens * vocabulary / bandwidth
    return LayerTimes(dense, sparse, head)


def _layer(
    gemm: Array,
    attention: tuple[Array, Array, tuple[Array, Array]],
    element: Array,
    tp: Array,
    ep: Array,
    host: tuple[float, float],
) -> LayerTime:
    """Forward and backward of a layer from its forward parts. `host`: seconds to launch it, seconds it waits for."""
    launch, wait = host
    core, core_backward, (context, context_backward) = attention
    device_forward = gemm + core + element + tp + ep + context
    # The host runs ahead of the device: a layer takes what the slower of them needs.
    stall = np.maximum(launch - device_forward, 0.0) + wait
    forward = device_forward + stall
    backward = BACKWARD * (gemm + element) + core_backward + tp + ep + context_backward + stall
    return LayerTime(
        forward,
        backward,
        (1 + BACKWARD) * gemm,
        core + core_backward,
        (1 + BACKWARD) * element,
        2 * tp,
        2 * ep,
        context + context_backward,
        2 * stall,
    )


def _core(shape: Shape, job: Job, L: Layouts, device: Device, stack: Stack, tokens: Array) -> tuple[Array, Array]:
    """Scores, softmax, product with the values: forward, and backward with what selective mode computes again."""
    # Unfused attention computes every score and masks afterwards.
    seen = keys_seen(shape, job.seq_len) if stack.flash else float(job.seq_len)
    width = a.nope_dim + a.rope_dim + a.value_dim if (a := shape.latent) else 2 * shape.head_dim
    flop = 2 * tokens * seen * width * shape.n_heads / L.tp
    peak = device.peak("fp16" if job.precision == "fp16" else "bf16")
    if stack.flash:
        forward = flop / (peak * stack.rate(stack.attention, device.generation))
        return forward, FLASH_BACKWARD * forward
    # Written, scaled, masked, normalised, dropped out and read again, 2 bytes each.
    scores = tokens * job.seq_len * shape.n_heads / L.tp
    forward = flop / (peak * stack.rate(stack.gemm, device.generation))
    forward = forward + 2 * stack.scores * scores / (device.memory_tb_s * 1e12 * stack.memory)
    return forward, forward * np.where(L.recompute == SELECTIVE, BACKWARD + 1, BACKWARD)


def keys_seen(shape: Shape, seq_len: int) -> float:
    """Keys that a query meets, mean over positions and layers."""
    share = shape.windowed_layers / shape.n_layers if shape.window else 0.0
    return share * visible_tokens(seq_len, shape.window) + (1 - share) * visible_tokens(seq_len)


def _ring(L: Layouts, device: Device, stack: Stack, bytes_: Array) -> Array:
    """Seconds to pass a block of `bytes_` round all context-parallel ranks, which lie tp ranks apart."""
    inside = L.tp * L.cp <= device.domain
    rate = np.where(inside, device.domain_gb_s * stack.domain, device.network_gb_s * stack.network) * 1e9
    out: Array = (L.cp - 1) * (bytes_ / rate + stack.latency_us * 1e-6)
    return out


def all_reduce(device: Device, stack: Stack, bytes_: Array, size: Array) -> Array:
    """Ring all-reduce, or the reduce-scatter and all-gather that take its place, over neighbouring ranks."""
    inside = size <= device.domain
    rate = np.where(inside, device.domain_gb_s * stack.domain, device.network_gb_s * stack.network) * 1e9
    return np.where(size > 1, 2 * (1 - 1 / size) * bytes_ / rate + stack.latency_us * 1e-6, 0.0)


def _all_to_all(L: Layouts, device: Device, stack: Stack, bytes_: Array) -> Array:
    """Seconds to send `bytes_` of a rank's tokens to the ranks of its experts."""
    # Ranks of an expert group are etp apart. Tokens go to each with the same probability, to the own one for nothing.
    away = 1 - 1 / np.minimum(np.maximum(L.ep * L.etp / device.domain, 1), L.ep)  # share that leaves the domain
    near = (1 - 1 / L.ep) - away
    network, domain = device.network_gb_s * stack.network * 1e9, device.domain_gb_s * stack.domain * 1e9
    seconds = bytes_ * (away / network + near / domain) + stack.latency_us * 1e-6
    return np.where(L.ep > 1, seconds, 0.0)
