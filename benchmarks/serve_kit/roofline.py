"""How fast could it be at all? Bytes over the measured bandwidth or products over the peak, whichever takes longer.

A run is a prefill of all prompts at once, then steps that take one token of every answer not yet finished. A step
reads the attention, router and head weights once, of each layer the experts that its tokens touch (if all are equally
likely), and the keys and values of every context. Nothing else costs anything, and caches hold nothing from one step to
the next: an engine cannot be faster unless they do.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moesaic.model import gemm_peak
from moesaic.recipe import Model
from serve_kit.workload import Ask

READ_BYTES = 2 << 30
WEIGHT = VALUE = 2  # bytes of bf16


@dataclass(frozen=True)
class Machine:
    """Measured rates a second: bytes read, bf16 products in FLOP."""

    bandwidth: float
    peak: float


def measure() -> Machine:
    """Both rates now, with torch's threads; about three seconds."""
    return Machine(read_bandwidth(), gemm_peak(torch.bfloat16, seconds=1.5))


def read_bandwidth(seconds: float = 1.5) -> float:
    """Best rate of reading 2 GiB once, by a sum or a product of two halves: far more than any cache. Bytes a second."""
    x = torch.ones(READ_BYTES // 4)
    low, high = x[: len(x) // 2], x[len(x) // 2 :]
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        for read in (x.sum, lambda: torch.dot(low, high)):
            begin = time.perf_counter()
            read()
            best = max(best, READ_BYTES / (time.perf_counter() - begin))
    return best


def roofline(config: Model, machine: Machine, asks: Sequence[Ask]) -> float:
    """Seconds from the first prompt to the last token."""
    lengths = [len(a.prompt) for a in asks]
    seconds = _pass(config, machine, sum(lengths), lengths, len(asks))
    for step in range(1, max(a.output for a in asks)):
        contexts = [len(a.prompt) + step for a in asks if a.output > step]
        seconds += _pass(config, machine, len(contexts), contexts, len(contexts), cached=True)
    return seconds


def _pass(
    config: Model, machine: Machine, tokens: int, contexts: Sequence[int], heads: int, cached: bool = False
) -> float:
    """Seconds of one forward; `heads`: positions whose logits are wanted; `cached`: contexts are read, not made."""
    expert = 3 * config.d_model * config.d_ff
    attention = config.d_model * config.head_dim * (2 * config.n_heads + 2 * config.n_kv_heads)
    head = config.vocab_size * config.d_model
    router = config.d_model * config.n_experts
    touched = config.n_experts * (1 - (1 - config.top_k / config.n_experts) ** tokens)
    weights = config.n_layers * (attention + router + touched * expert) + head
    kept = 2 * config.n_layers * config.n_kv_heads * config.head_dim
    read = WEIGHT * weights + (VALUE * kept * sum(contexts) if cached else 0)
    pairs = sum(contexts) if cached else sum(n * (n + 1) / 2 for n in contexts)
    products = tokens * config.n_layers * (attention + router + config.top_k * expert) + heads * head
    products += 2 * config.n_layers * config.n_heads * config.head_dim * pairs
    return max(read / machine.bandwidth, 2 * products / machine.peak)
