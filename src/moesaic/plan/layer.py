"""Time of one layer on one micro-batch, by what it is spent on; and of the output head."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moesaic.plan.device import Device
from moesaic.plan.flops import visible_tokens
from moesaic.plan.job import Job
from moesaic.plan.layouts import SELECTIVE, Array, Layouts
from moesaic.plan.rank import Heads, attention_on_rank, heads_on_rank
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
    rank = _Rank(shape, job, L, device, stack)
    core, core_backward = _core(shape, job, L, device, stack, rank.tokens)
    # Blocks of keys and values go round the ring while others are multiplied; their gradients too on the way back
    # (Liu et al. 2023, arXiv:2310.01889, sec. 3). Only what takes longer than the arithmetic shows.
    ring = _ring(L, device, stack, 2 * rank.tokens * (rank.heads.keys + rank.heads.values))
    context = np.maximum(ring - core, 0.0), np.maximum(2 * ring - core_backward, 0.0)
    attention = core, core_backward, context

    products = rank.attention_products()
    dense_element, sparse_element = rank.elementwise()
    dense_tp, sparse_tp, all_to_all = rank.collectives()
    host = stack.layer_us * 1e-6, 0.0
    dense_gemm = products + rank.block_products(shape.d_ff)
    dense = _layer(dense_gemm, attention, dense_element, dense_tp, np.zeros_like(core), host)
    host = stack.sparse_us * 1e-6, stack.sync_us * 1e-6
    sparse_gemm = products + rank.router_products() + rank.expert_products()
    sparse = _layer(sparse_gemm, attention, sparse_element, sparse_tp, all_to_all, host)
    return LayerTimes(dense, sparse, rank.head())


@dataclass(frozen=True)
class _Rank:
    """The work of one rank on one micro-batch, forward, in seconds; all but the scores and the ring around them."""

    shape: Shape
    job: Job
    L: Layouts
    device: Device
    stack: Stack

    @cached_property
    def tokens(self) -> Array:
        """Of the micro-batch, on this rank."""
        out: Array = self.L.micro_batch * (self.job.seq_len / self.L.cp)
        return out

    @cached_property
    def normed(self) -> Array:
        """Those of them whose norms, residuals and projections to latents this rank computes."""
        return self.tokens / self.split

    @cached_property
    def split(self) -> Array:
        """Ranks that share the norms."""
        return self.L.tp if self.stack.sequence_parallel else np.ones_like(self.L.tp)

    @cached_property
    def routed(self) -> Array:
        """Copies of tokens that the experts of the busiest rank receive."""
        copies = np.where(self.L.etp > 1, 1.0, 1 / self.L.tp) * self.shape.top_k
        out: Array = self.tokens * copies * self.job.imbalance
        return out

    @cached_property
    def heads(self) -> Heads:
        """Widths of the heads."""
        return heads_on_rank(self.shape, self.L.tp)

    @cached_property
    def expert_width(self) -> Array:
        """Values inside an expert, over its matrices."""
        return self.shape.ffn_matrices * self.shape.d_expert / self.L.etp

    @property
    def latents(self) -> int:
        """Width of the latents that are normed."""
        return a.kv_rank + (a.q_rank or 0) if (a := self.shape.latent) else 0

    @cached_property
    def peak(self) -> float:
        """FLOP/s of large products."""
        peak = self.device.peak(self.job.precision) * self.stack.rate(self.stack.gemm, self.device.generation)
        return peak * (1.0 if self.job.precision in ("bf16", "fp16") else self.stack.low_precision)

    @cached_property
    def bandwidth(self) -> float:
        """Bytes/s of memory."""
        return self.device.memory_tb_s * 1e12 * self.stack.memory

    def product(self, weights: Array | float, rows: Array, moved: Array | float) -> Array:
        """Rows times `weights` elements, `moved` values read and written."""
        seconds: Array = 2 * weights * rows / self.peak + 2 * (weights + moved) / self.bandwidth
        return seconds

    def attention_products(self) -> Array:
        """Projections; those down to latents are whole on each rank, for the tokens that the rank norms."""
        shape, d, tokens, heads = self.shape, self.shape.d_model, self.tokens, self.heads
        split_weights, whole_weights = attention_on_rank(shape, self.L.tp)
        widths = d + heads.all + d  # queries, keys and values from one product
        if a := shape.latent:
            read, up = a.q_rank or d, shape.n_heads * (a.nope_dim + a.value_dim) / self.L.tp
            widths = read + heads.queries + a.kv_rank + up + heads.output + d
        found = self.product(split_weights, tokens, tokens * widths)
        if a := shape.latent:
            down = d + a.kv_rank + a.rope_dim + (d + a.q_rank if a.q_rank else 0)
            found = found + self.product(whole_weights, self.normed, self.normed * down)
        if shape.attention_extra:
            found = found + self.product(shape.attention_extra, tokens, 0.0)
        return found

    def block_products(self, width: int) -> Array:
        """A feed-forward block of `width`, split over the tensor ranks."""
        wide = self.shape.ffn_matrices * width / self.L.tp
        return self.product(self.shape.d_model * wide, self.tokens, self.tokens * (2 * self.shape.d_model + wide))

    def router_products(self) -> Array:
        """Scores of all experts."""
        d, experts = self.shape.d_model, self.shape.n_experts
        return self.product(d * experts, self.normed, self.normed * (d + experts))

    def expert_products(self) -> Array:
        """Routed experts, whose last tiles are half empty, and shared ones."""
        shape, d, routed, width = self.shape, self.shape.d_model, self.routed, self.expert_width
        held = shape.n_experts / self.L.ep  # experts on a rank
        padded = 1 + TILE / 2 / np.maximum(routed / held, 1)
        found: Array = 2 * d * width * routed * padded / self.peak
        found = found + 2 * (held * d * width + routed * (2 * d + width)) / self.bandwidth
        return found + self.block_products(shape.d_shared) if shape.n_shared else found

    def elementwise(self) -> tuple[Array, Array]:
        """Traffic between products, of a dense and of a sparse layer.

        Norms (read, write), two residuals (two reads, a write), queries, keys, values and output once in and out
        (rotation, layout), activation functions; tokens permuted to their experts and back.
        """
        shape, d, tokens, heads = self.shape, self.shape.d_model, self.tokens, self.heads
        passes = (2 * (shape.norms * d + self.latents) + 6 * d) / self.split + 2 * heads.all
        if shape.qk_norm:
            passes = passes + 2 * (heads.queries + heads.keys)
        value = 2 * self.stack.elementwise / self.bandwidth
        dense = value * tokens * (passes + shape.ffn_matrices * shape.d_ff / self.L.tp)
        sparse = value * (tokens * passes + self.routed * (8 * d + self.expert_width))
        if shape.n_shared:
            sparse = sparse + value * tokens * (shape.ffn_matrices * shape.d_shared / self.L.tp)
        return dense, sparse

    def collectives(self) -> tuple[Array, Array, Array]:
        """Sums over tensor ranks of a dense and of a sparse layer, and the way to the experts and back."""
        shape, stack, d = self.shape, self.stack, self.shape.d_model
        reduce_ = all_reduce(self.device, stack, 2 * self.tokens * d, self.L.tp) * stack.exposed_tp
        sparse = reduce_ + all_reduce(self.device, stack, 2 * self.routed * d, self.L.etp) * stack.exposed_tp
        if shape.n_shared:
            sparse = sparse + reduce_
        sent = 2 * self.tokens / self.L.tp * shape.top_k * self.job.imbalance * d
        all_to_all = 2 * _all_to_all(self.L, self.device, stack, sent) * stack.exposed_ep
        return reduce_ if shape.parallel_block else 2 * reduce_, sparse, all_to_all

    def head(self) -> Array:
        """Output head with its loss: a product, and logits in fp32 written and read."""
        d, vocabulary = self.shape.d_model, self.shape.vocab_size / self.L.tp
        found = self.product(d * vocabulary, self.tokens, self.tokens * (d + vocabulary))
        return found + 8 * self.tokens * vocabulary / self.bandwidth


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
