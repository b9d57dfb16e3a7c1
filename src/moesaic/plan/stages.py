"""Cuts of a model: what each pipeline stage holds, and the dense model of the same size."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moesaic.errors import PlanError
from moesaic.plan.shape import Shape


@dataclass(frozen=True)
class StageLoad:
    """What one pipeline stage holds."""

    layers: int
    parameters: int  # the embedding on the first stage and the head on the last included, a tied one on both


def layer_counts(n_layers: int, pp: int, lightest: Sequence[int]) -> list[int]:
    """Layers of each of `pp` stages, as even as whole layers go.

    Those that the division leaves over go to the late stages first, one each; to the stages of `lightest` only when
    no other is left, and then to the last of them. Training spares the last (`pp - 1`), which holds the head, and by
    that rule its early stages, which keep most activations (placement.py does this for whole grids). Serving keeps no
    activations: it spares the first (`0`), which holds the embedding, and then the last.
    """
    few, more = divmod(n_layers, pp)
    order = [*dict.fromkeys(lightest), *(i for i in range(pp) if i not in lightest)]
    fuller = set(order[pp - more :])
    return [few + (i in fuller) for i in range(pp)]


def stage_loads(shape: Shape, pp: int) -> list[StageLoad]:
    """What the stages of a training run hold.

    A tied embedding stands on the first and on the last stage (Shoeybi et al. 2019 and Narayanan et al. 2021 keep
    the two copies alike). Raises PlanError when there are more stages than layers.
    """
    if not 1 <= pp <= shape.n_layers:
        raise PlanError(f"pp = {pp} stages for {shape.n_layers} layers; use 1 to {shape.n_layers}")
    counts = layer_counts(shape.n_layers, pp, lightest=(pp - 1,))
    sparse, dense = shape.sparse_layer_parameters(), shape.dense_layer_parameters
    loads, layer = [], 0
    head = shape.head_parameters or (shape.vocab_size * shape.d_model if pp > 1 else 0)
    for stage, count in enumerate(counts):
        held = sum(sparse if shape.is_sparse(n) else dense for n in range(layer, layer + count))
        layer += count
        held += shape.embedding_parameters if stage == 0 else 0
        held += head + shape.d_model * shape.norm_values + shape.extra if stage == pp - 1 else 0
        loads.append(StageLoad(count, held))
    return loads


def dense_twin(shape: Shape) -> Shape:
    """The dense model of as many parameters (but for the routers): all experts of a layer as one wide block."""
    if shape.n_experts == 1:
        return shape
    total = shape.n_experts * shape.d_expert + shape.d_shared
    width = (shape.sparse_layers * total + shape.dense_layers * shape.d_ff) // shape.n_layers
    return replace(
        shape,
        name=f"{shape.name}, dense",
        n_experts=1,
        top_k=1,
        d_ff=width,
        d_expert=0,
        n_shared=0,
        d_shared=0,
        dense_layers=0,
        dense_at=(),
        router_extra=0,
    )
