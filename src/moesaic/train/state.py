"""What a checkpoint of a run holds: weights and moments by name, and plain values for all else."""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from moesaic.data import Carry, Ledger, Loader
from moesaic.errors import CheckpointError
from moesaic.parallel.engine import Engine
from moesaic.recipe import Recipe
from moesaic.train.optimizer import optimizer_state
from moesaic.train.progress import Progress
from moesaic.train.step import TrainStep


def tensors_of(engine: Engine, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """This rank's weights and, inside a stage, their moments; sharing memory."""
    state: dict[str, Any] = {"model": engine.weights()}
    if optimizer is not None:
        state["optimizer"] = optimizer_state(optimizer, engine.named_parameters(), engine.model_order)
    return state


@torch.no_grad()
def after_loading(engine: Engine, optimizer: torch.optim.Optimizer | None = None) -> None:
    """A name is filled once; where a rank holds both copies of a tied embedding, the other one follows."""
    for first, last in engine.equal_ends():
        first.copy_(last)
        if optimizer is not None:
            ours, theirs = optimizer.state[first], optimizer.state[last]
            for key, value in theirs.items():
                moment: Tensor = ours[key]
                moment.copy_(value)


def values_of(
    recipe: Recipe,
    engine: Engine,
    progress: Progress,
    carry: Carry,
    ledger: Ledger,
    arithmetic: str,
    step: TrainStep | None = None,
    loader: Loader | None = None,
) -> dict[str, Any]:
    """Everything besides tensors, the same on every rank."""
    values: dict[str, Any] = {
        "progress": asdict(progress),
        "carry": carry.plain(),
        "ledger": ledger.state_dict(),
        "system_hash": recipe.system_hash(),
        "full_hash": recipe.full_hash(),
        "rope_theta": engine.config.rope_theta,
        "context": engine.config.context,
        "arithmetic": arithmetic,
    }
    if step is not None and loader is not None:
        values |= {"train_step": step.state_dict(), "loader": loader.state_dict()}
    return values


def check_system(before: str, recipe: Recipe) -> None:
    """Raises CheckpointError when a checkpoint is of another system: it was copied here from another run."""
    if before != recipe.system_hash():
        raise CheckpointError(
            f"the newest checkpoint is of another system (model, data, stages or seed): {before}, "
            f"this run is of {recipe.system_hash()}; remove it, or start from its model folder with --init"
        )


def check_data(before: dict[str, int], now: dict[str, int]) -> None:
    """Raises CheckpointError when the data is not what was trained on: tokens of an epoch by source."""
    if changed := [name for name, tokens in now.items() if before.get(name) != tokens]:
        raise CheckpointError(
            f"the data changed since this run began: {changed[0]} holds {now[changed[0]]:,} tokens now, "
            f"{before.get(changed[0], 0):,} then; restore it, or start another run from a model folder with --init"
        )
