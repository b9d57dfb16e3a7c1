"""Which layers each piece of a pipeline holds, and which pieces each pipeline rank.

A piece costs what a token costs there: the parameters that it meets in the piece's layers (attention, router, `top_k`
experts or the dense block), and in the last piece the head's. Looking up an embedding costs nothing. The pipeline runs
at the pace of the dearest piece, so that is made as cheap as it can be.

The planner splits evenly and never lets the last stage hold more than another (`plan.stages.layer_counts`). Where all
layers cost the same and the head at most as much as one of them, the two rules give the same counts (tested). They
differ where the head is dearer, which takes further layers off the last piece here, and where dense layers are wider
or narrower than sparse ones.
"""

from bisect import bisect_left
from itertools import accumulate

from moesaic.errors import RecipeError
from moesaic.recipe import Layout, Model


def layer_costs(config: Model) -> list[int]:
    """Parameters that one token meets in each layer; its matrix products are twice as many FLOP."""
    costs = []
    for layer in range(config.n_layers):
        experts = config.experts_of(layer)
        block = min(config.top_k, experts) * 3 * config.d_model * config.d_ff_of(layer)
        costs.append(config.attention_parameters + block + (config.router_parameters if experts > 1 else 0))
    return costs


def split_layers(config: Model, pieces: int) -> list[range]:
    """The layers of each of `pieces` pieces (pp x chunks), in order, at least one each.

    Of all splits whose dearest piece is the cheapest possible, the most even one; of equally even ones the one whose
    early pieces hold fewer layers, as they keep the most activations. Raises RecipeError when layers do not suffice.
    """
    n = config.n_layers
    if not 1 <= pieces <= n:
        raise RecipeError(f"{pieces} pipeline pieces for n_layers = {n}; use 1 to {n}: lower pp or chunks")
    upto = [0, *accumulate(layer_costs(config))]
    upto.append(upto.pop() + config.vocab_size * config.d_model)  # the last layer carries the head
    most = _cheapest_maximum(upto, pieces)
    # evenness[i]: smallest sum of squared counts that splits layers i.. into the pieces left, and the first count.
    evenness: list[tuple[int, int] | None] = [None] * n + [(0, 0)]
    first: list[list[int]] = []
    for _ in range(pieces):
        further: list[tuple[int, int] | None] = [None] * (n + 1)
        for start in range(n):
            for end in range(start + 1, n + 1):
                if upto[end] - upto[start] > most:
                    break
                rest = evenness[end]
                if rest is not None:
                    found = (rest[0] + (end - start) ** 2, end - start)
                    further[start] = min(further[start] or found, found)
        evenness = further
        first.append([0 if best is None else best[1] for best in further])
    out, start = [], 0
    for counts in reversed(first):
        out.append(range(start, start + counts[start]))
        start = out[-1].stop
    return out


def piece_of(layout: Layout, rank_pp: int) -> list[int]:
    """The pieces that pipeline rank `rank_pp` holds, in the order of the model.

    1F1B: its own. Interleaved: every pp-th from its own on (Narayanan et al. 2021, arXiv:2104.04473, sec. 2.2.2). Zero
    bubble: two, in the shape of a V, so that the first rank holds the first and the last piece (Qi et al. 2024,
    arXiv:2401.10241, sec. 6).
    """
    if not 0 <= rank_pp < layout.pp:
        raise RecipeError(f"pipeline rank {rank_pp} of pp = {layout.pp}; use 0 to {layout.pp - 1}")
    if layout.pp > 1 and layout.schedule == "zero_bubble":
        return [rank_pp, 2 * layout.pp - 1 - rank_pp]
    return list(range(rank_pp, layout.pp * layout.chunks_per_rank, layout.pp))


def _cheapest_maximum(upto: list[int], pieces: int) -> int:
    """The smallest cost that the dearest of `pieces` pieces can have; `upto[i]` is the cost of the layers before i.

    A bound can be kept when filling pieces up to it needs at most `pieces` of them: splitting one makes none dearer.
    """
    costs = sorted({upto[j] - upto[i] for i in range(len(upto)) for j in range(i + 1, len(upto))})
    return costs[bisect_left(costs, True, key=lambda bound: _filled(upto, bound) <= pieces)]


def _filled(upto: list[int], bound: int) -> int:
    """Pieces of cost `bound` at most that hold everything, each filled as far as it goes; too many where none can."""
    count, start = 0, 0
    for end in range(1, len(upto)):
        if upto[end] - upto[end - 1] > bound:
            return len(upto)
        if upto[end] - upto[start] > bound:
            count, start = count + 1, end - 1
    return count + 1


def micro_batches(layout: Layout, rows: int, largest: int) -> tuple[int, int]:
    """Sequences in a micro-batch, at most `largest`, and number of micro-batches for the `rows` sequences of a replica.

    Where a pipeline would not fill, micro-batches shrink; what is missing to a number that its schedule takes comes as
    empty ones.
    """
    if layout.pp == 1:
        return min(largest, rows), -(-rows // largest)
    least = layout.pp * (2 if layout.schedule == "zero_bubble" else 1)
    micro = max(1, min(largest, rows // least))
    count = max(-(-rows // micro), least)
    if layout.schedule == "interleaved":
        while count % (count // layout.pp):  # torch deals them out in rounds of equal size
            count += 1
    return micro, count
