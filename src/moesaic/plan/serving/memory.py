"""What a stage holds and how many sequences fit beside it. Everything is per device, in bytes."""

import math
from dataclasses import dataclass

from moesaic.errors import PlanError
from moesaic.plan.reserve import COLLECTIVE_BYTES, DRIVER_BYTES
from moesaic.plan.serving.replica import WEIGHT_BYTES, Replica
from moesaic.plan.stages import layer_counts

CHUNK = 1024  # prompt tokens that one pass of prefill takes; sizes the activations below


@dataclass(frozen=True)
class Stage:
    """Layers of one pipeline stage. The first also embeds, the last also computes the logits."""

    index: int
    layers: int
    sparse: int  # of `layers`
    embeds: bool
    heads: bool


def stages(model: Replica, first: int | None = None) -> list[Stage]:
    """Layers over the pipeline stages, as even as they divide; the stages with one layer fewer are the first (it also
    embeds), then the last (it also computes the logits), then the early ones.

    `first` fixes the layers of the first stage, for example 0 for a stage of embeddings alone.
    Raises PlanError when the rest cannot hold the remaining layers.
    """
    n, p = model.shape.n_layers, model.pp
    if p == 1:
        counts = [n]
    elif first is None:
        counts = layer_counts(n, p, lightest=(0, p - 1))
    else:
        if not 0 <= first <= n - (p - 1):
            raise PlanError(f"{first} layers on the first stage: give 0 to {n - (p - 1)} of {n} layers over {p} stages")
        base, extra = divmod(n - first, p - 1)
        counts = [first] + [base + (i < extra) for i in range(p - 1)]
    out, begin = [], 0
    for i, layers in enumerate(counts):
        sparse = sum(model.shape.is_sparse(layer) for layer in range(begin, begin + layers))
        out.append(Stage(i, layers, sparse, i == 0, i == p - 1))
        begin += layers
    return out


def weight_bytes(model: Replica, stage: Stage) -> float:
    """Weights of a stage on one device; embeddings, head, norms and routers stay in 16 bit.

    Attention and experts are cut over TP, experts also over EP; K and V projections are not cut further than one head
    (their share is below one percent and counted as cut).
    """
    s = model.shape
    attention = s.attention_parameters * model.other_bytes / model.tp
    norms = (s.norm_parameters + s.router_parameters) * 2.0 / model.tp
    dense = s.block_parameters(s.d_ff) * WEIGHT_BYTES[model.weights] / model.tp
    shared = s.block_parameters(s.d_shared) * model.other_bytes / model.tp if s.n_shared else 0.0
    routed = s.n_experts * s.block_parameters(s.d_expert) * model.expert_bytes / (model.tp * model.dp)
    total = (
        stage.layers * (attention + norms) + stage.sparse * (routed + shared) + (stage.layers - stage.sparse) * dense
    )
    if stage.embeds:
        total += s.embedding_parameters * 2.0 / model.tp
    if stage.heads and not (stage.embeds and s.tied):
        total += s.vocab_size * s.d_model * 2.0 / model.tp
    return total


def kv_bytes(model: Replica, stage: Stage, tokens: float) -> float:
    """Cache of one sequence of `tokens` on one device of a stage; windowed layers keep their window only."""
    s = model.shape
    windowed = stage.layers * s.windowed_layers / s.n_layers if s.window else 0.0
    kept = (stage.layers - windowed) * tokens + windowed * min(tokens, s.window or 0)
    return kept * model.kv_bytes_per_token_layer


def activation_bytes(model: Replica, chunk: int = CHUNK) -> float:
    """Live activations of one pass over `chunk` tokens, 16 bit: residual, its norm, input and output of a block (4 d),
    queries, keys, values and the attention output, and what `top_k` experts gather and compute."""
    s = model.shape
    heads = 2 * (s.n_heads * s.head_dim) / model.tp + 2 * model.kv_heads * s.head_dim
    width = (s.top_k * s.d_expert + s.d_shared) if s.n_experts > 1 else s.d_ff
    routed = 2 * s.top_k * s.d_model if s.n_experts > 1 else 0
    return chunk * 2.0 * (4 * s.d_model + heads + s.ffn_matrices * width / model.tp + routed)


def reserve_bytes(model: Replica, chunk: int = CHUNK) -> float:
    """What neither weights nor cache may take: context, collective buffers, activations of a prefill chunk."""
    return DRIVER_BYTES + COLLECTIVE_BYTES + activation_bytes(model, chunk)


@dataclass(frozen=True)
class Room:
    """Sequences of one length that fit at once, over the attention copies together. Negative room counts as 0."""

    weight_bytes: float
    reserve_bytes: float
    free_bytes: float
    kv_bytes: float  # of one sequence
    sequences: int


def room(model: Replica, stage: Stage, tokens: float, chunk: int = CHUNK) -> Room:
    """How many sequences of `tokens` fit on a stage."""
    weights, reserve = weight_bytes(model, stage), reserve_bytes(model, chunk)
    free = model.device.memory_gb * 1e9 - weights - reserve
    each = kv_bytes(model, stage, tokens)
    fits = math.floor(free / each + 1e-9) if each and free > 0 else 0
    return Room(weights, reserve, free, each, max(fits, 0) * model.dp)


def average_room(model: Replica, tokens: float, chunk: int = CHUNK) -> Room:
    """The same as if weights and cache were spread evenly over the stages: an optimist's number, for comparison."""
    all_stages = stages(model)
    weights = sum(weight_bytes(model, s) for s in all_stages) / model.pp
    each = sum(kv_bytes(model, s, tokens) for s in all_stages) / model.pp
    reserve = reserve_bytes(model, chunk)
    free = model.device.memory_gb * 1e9 - weights - reserve
    return Room(weights, reserve, free, each, (math.floor(free / each) if each and free > 0 else 0) * model.dp)


def tightest(model: Replica, tokens: float, first: int | None = None, chunk: int = CHUNK) -> tuple[Stage, Room]:
    """The stage on which the fewest sequences fit, and its room."""
    rooms = [(s, room(model, s, tokens, chunk)) for s in stages(model, first)]
    return min((r for r in rooms if r[1].kv_bytes), key=lambda r: (r[1].sequences, r[1].free_bytes))
