"""Model folders that a stage begins with: weights to start from, a teacher to learn from."""

from pathlib import Path

from moesaic.errors import CheckpointError
from moesaic.interop import load_model
from moesaic.model import Transformer
from moesaic.parallel.engine import Engine
from moesaic.recipe import Model, Recipe, Stage

# What a stage may change, and what only training needs; all else of a model decides what it computes.
FREE = {"context", "rope_theta", "balance_weight", "z_weight", "balance_scope", "init_std"}


def check_starts(recipe: Recipe) -> None:
    """Raises CheckpointError when a folder that a stage starts from or learns from is not there."""
    for stage in recipe.stages:
        for path in (stage.init, stage.teacher):
            if path is not None and not (Path(path) / "config.json").is_file():
                raise CheckpointError(
                    f"stage {stage.name!r} needs the model folder {path}, which is not there; the first lines of the "
                    "recipe say how to make it, or name another with --init"
                )


def start_from(engine: Engine, stage: Stage) -> None:
    """Take the weights of `stage.init`. Raises CheckpointError when its shape is another."""
    other = load_model(Path(str(stage.init)))
    theirs, ours = other.config, engine.config
    wrong = [n for n in Model.model_fields if n not in FREE and getattr(theirs, n) != getattr(ours, n)]
    if wrong:
        raise CheckpointError(
            f"{stage.init}: {wrong[0]} = {getattr(theirs, wrong[0])}, the recipe says {getattr(ours, wrong[0])}; "
            f"set model.{wrong[0]} (and {len(wrong) - 1} more) to the folder's values"
        )
    weights = other.state_dict()
    engine.fill(lambda name, _: weights[name])
    engine.extend(theirs.context, theirs.rope_theta)


def load_teacher(engine: Engine, stage: Stage) -> Transformer:
    """The frozen model that a distillation stage learns from. Raises CheckpointError."""
    teacher = load_model(Path(str(stage.teacher)), compute_dtype=engine.compute_dtype)
    if teacher.config.vocab_size != engine.config.vocab_size:
        raise CheckpointError(
            f"teacher {stage.teacher} has {teacher.config.vocab_size} tokens, the model "
            f"{engine.config.vocab_size}; a teacher must share the tokenizer"
        )
    teacher.use_kernels(engine.parts[0].kernels)
    return teacher.to(engine.world.device).requires_grad_(False)
