"""Bytes that one rank sends in one training step, collective by collective, as the engine in `parallel/` makes them.

`plan/step.py` prices traffic in seconds for any stack and any device; this is the list behind it for our own engine,
exact but for routing (each expert is taken to get its share) so that a benchmark can hold measured bytes against it.

Convention: rings. Of a buffer of n ranks each sends (n - 1) / n to gather or to reduce-scatter it, twice that to
all-reduce it (Patarasuk and Yuan 2009); of rows exchanged all to all, those that leave the rank. What a back end makes
of it may differ: gloo reduces to all and drops the rest where a reduce-scatter is asked for.

Not counted is what happens once in a run: neighbours in a pipeline greet each other with one value.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Literal

from moesaic.plan.local_weights import LocalWeight, local_weights
from moesaic.recipe import Layout, Model

Operation = Literal["all_gather", "reduce_scatter", "all_reduce", "all_to_all", "send"]
FP32, FP64, INT64 = 4, 8, 8
LOSS_ROWS = 512  # rows of logits at a time: model.next_token.CHUNK


@dataclass(frozen=True)
class StepShape:
    """What one data-parallel replica computes in a step: `micro_batches` of `micro_batch` whole sequences each."""

    micro_batches: int
    micro_batch: int
    seq_len: int
    product_bytes: Literal[2, 4]  # of a value in matrix products: 2 in bf16, 4 in fp32


@dataclass(frozen=True)
class Sent:
    """One kind of collective in a step: how often, and how many bytes leave this rank for others in all of them."""

    group: str  # tp, cp, sequence (cp x tp), ep, fsdp (dp x cp), edp, pp, ends, world
    operation: Operation
    what: str
    calls: int
    bytes: float


@dataclass
class _Rows:
    """Collects rows. Groups of one send nothing and have none."""

    rows: list[Sent] = field(default_factory=list)

    def add(self, group: str, size: int, operation: Operation, what: str, calls: int, each: float) -> None:
        """`each`: bytes of the whole buffer in one call (of this rank's rows, all to all)."""
        share = {"all_reduce": 2 * (size - 1) / size, "send": 1.0}.get(operation, (size - 1) / size)
        if size > 1 and calls:
            self.rows.append(Sent(group, operation, what, calls, calls * each * share))


def traffic(model: Model, layout: Layout, step: StepShape, held: Mapping[int, range] | None = None) -> list[Sent]:
    """What the rank that holds the pipeline pieces `held` sends in one step; no rows in a world of one.

    `held`: layers by number of the piece, as `parallel.stages` deals them out: `{p: split_layers(model, n)[p] for p in
    piece_of(layout, rank)}`. Without it the rank holds the whole model.
    """
    held = {0: range(model.n_layers)} if held is None else held
    rows, last = _Rows(), layout.pp * layout.chunks_per_rank - 1
    for number, layers in held.items():
        _micro_batch(rows, model, layout, step, layers, first=number == 0, last=number == last)
        hops = {number + 1, number - 1} - held.keys() - {-1, last + 1}
        stream = FP32 * step.micro_batch * step.seq_len // (layout.cp * layout.tp) * model.d_model
        rows.add("pp", layout.pp, "send", "residual stream or its gradient", len(hops) * step.micro_batches, stream)
    for number, layers in held.items():
        weights = list(local_weights(model, layout, layers, first=number == 0, last=number == last))
        _replicas(rows, layout, weights, step)
        small = sum(_kept(layout, w) for w in weights if w.summed_over_tp)
        rows.add("tp", layout.tp, "all_reduce", "gradients of weights that all hold whole", 1, FP32 * small)
        ends = model.tie_embeddings and layout.pp > 1 and layout.schedule != "zero_bubble" and number in (0, last)
        tied = sum(_kept(layout, w) for w in weights if w.name == "embedding")
        rows.add("ends", 2 if ends else 1, "all_reduce", "gradient of the tied embedding", 1, FP32 * tied)
    totals = 3 + len(model.sparse_layers) * model.n_experts  # losses and assignments, for the record
    rows.add("world", layout.world, "all_reduce", "losses and load", 1, FP32 * totals)
    rows.add("world", layout.world, "all_reduce", "gradient norm", 1, FP64)
    return rows.rows


def total_bytes(rows: Sequence[Sent], operation: Operation | None = None, group: str | None = None) -> float:
    """Bytes of those rows that are of an operation and a group, where these are given."""
    return sum(r.bytes for r in rows if operation in (None, r.operation) and group in (None, r.group))


def _micro_batch(
    rows: _Rows, model: Model, layout: Layout, step: StepShape, layers: range, first: bool, last: bool
) -> None:
    """What the layers of a piece, embedding and loss exchange for all micro-batches, forward and backward."""
    m, c, d, tp = step.micro_batches, step.product_bytes, model.d_model, layout.tp
    tokens = step.micro_batch * step.seq_len // layout.cp  # on this context rank
    sparse = [n for n in layers if model.experts_of(n) > 1]
    full, again = layout.recompute == "full", layout.recompute != "none"
    wide = len(layers) - len(sparse) + (len(sparse) if layout.etp > 1 else 0)  # blocks split over tensor ranks
    calls = m * (len(layers) + wide)

    # Recomputing a layer stops at the last tensor that its backward pass reads, which is before the last sum.
    def both_ways(what: str, gathers: int, sums: int, each: int) -> None:
        rows.add("tp", tp, "all_gather", what, gathers, each)
        rows.add("tp", tp, "reduce_scatter", what, sums, each)

    stream = "residual stream around attention and split blocks"
    both_ways(stream, calls * (3 if full else 2), 2 * calls + m * len(layers) * full, c * tokens * d)
    if layout.etp > 1:
        choices = tokens * model.top_k
        rows.add("tp", tp, "all_gather", "chosen experts", m * len(sparse) * (1 + full), INT64 * choices)
        rows.add("tp", tp, "all_gather", "routing weights", m * len(sparse) * (1 + full), FP32 * choices)
        rows.add("tp", tp, "reduce_scatter", "routing weights", m * len(sparse), FP32 * choices)
    if first:
        both_ways("embedding", m, m, FP32 * tokens * d)
    if last:
        both_ways("hidden states before the loss", m, m, c * tokens * d)
        chunks = m * ceil(tokens / LOSS_ROWS)
        rows.add("tp", tp, "all_reduce", "largest logits", chunks, FP32 * tokens * m / chunks)
        rows.add("tp", tp, "all_reduce", "sums of the softmax, target logits", chunks, 2 * FP32 * tokens * m / chunks)

    counts = FP32 * len(sparse) * step.micro_batch * (model.n_experts + 1)
    rows.add("sequence", layout.cp * tp, "all_reduce", "assignments of whole sequences", m * bool(sparse), counts)

    routed = (tokens if layout.etp > 1 else tokens // tp) * model.top_k
    ways, times = m * len(sparse) * (6 if full else 4), m * len(sparse) * (1 + full)  # there and back, both passes
    rows.add("ep", layout.ep, "all_to_all", "rows of experts", ways, c * routed * d)
    rows.add("ep", layout.ep, "all_to_all", "numbers of rows", times, INT64 * model.n_experts)

    kv = 2 * max(1, model.n_kv_heads // tp) * model.head_dim * tokens * layout.cp * c
    rows.add("cp", layout.cp, "all_gather", "keys and values", m * len(layers) * (1 + again), kv)
    rows.add("cp", layout.cp, "reduce_scatter", "keys and values", m * len(layers), kv)


def _replicas(rows: _Rows, layout: Layout, weights: Sequence[LocalWeight], step: StepShape) -> None:
    """What replicas exchange for the weights of one piece: gradients, and with ZeRO the weights themselves.

    Experts are gathered as products take them, under zero-bubble schedules in fp32 like the rest. ZeRO-1 gathers and
    reduces once a step. ZeRO-3 gathers a layer for each forward and backward pass, embedding, norm and head once for
    both, and reduces for each micro-batch. Under torch's pipeline schedules a stage reduces once and gives weights up
    after forward passes alone: a layer is gathered whenever its pass is not the one after a backward pass, which is
    m + 1 times in any order that begins forward and ends backward.
    """
    piped, m = layout.pp > 1, step.micro_batches
    grain = 2 if layout.reduce == "bf16" else FP32
    for group, size, routed in (("fsdp", layout.dp * layout.cp, False), ("edp", layout.edp, True)):
        for name, of_layers in (("layers", True), ("embedding, norm, head", False)):
            mine = [w for w in weights if w.routed == routed and (w.layer is not None) == of_layers]
            units = len({w.layer for w in mine})
            if not units:
                continue
            what = "experts" if routed else name
            if layout.zero == 0:
                count = sum(w.numel for w in mine)
                rows.add(group, size, "all_reduce", f"gradients of {what}", 1, grain * count)
                continue
            count = sum(w.padded(size) for w in mine) // units
            times = m if layout.zero == 3 and not piped else 1
            gathers = (m + 1 if piped else 2 * m) if layout.zero == 3 and of_layers else times
            each = step.product_bytes if routed and layout.narrows_experts else FP32
            rows.add(group, size, "all_gather", f"weights of {what}", units * gathers, each * count)
            rows.add(group, size, "reduce_scatter", f"gradients of {what}", units * times, grain * count)


def _kept(layout: Layout, weight: LocalWeight) -> float:
    """Values of a dense weight's gradient on this rank once replicas have reduced it: its shard with ZeRO."""
    size = layout.dp * layout.cp
    return weight.numel if layout.zero == 0 else weight.padded(size) / size


def by_group(rows: Sequence[Sent]) -> Iterator[tuple[str, Operation, float]]:
    """Bytes of each group and operation, in the order of first appearance."""
    for group, operation in dict.fromkeys((r.group, r.operation) for r in rows):
        yield group, operation, total_bytes(rows, operation, group)
