"""Model folders that a stage begins with: weights to start from, a teacher to learn from."""

from pathlib import Path

from moesaic.errors import CheckpointError
from moesaic.interop import load_model
from moesaic.model import Transformer
from moesaic.recipe import Stage

SHAPE = (
    "vocab_size",
    "d_model",
    "n_layers",
    "n_heads",
    "head_dim",
    "n_kv_heads",
    "d_ff",
    "n_experts",
    "dense_layers",
    "dense_d_ff",
    "qk_norm",
    "attention_bias",
    "mlp_bias",
    "tie_embeddings",
)


def start_from(model: Transformer, stage: Stage) -> None:
    """Take the weights of `stage.init`. Raises CheckpointError when its shape is another."""
    if not (Path(str(stage.init)) / "config.json").is_file():
        raise CheckpointError(
            f"stage {stage.name!r} starts from {stage.init}, which is not there; the first lines of the recipe say how "
            "to make it"
        )
    other = load_model(Path(str(stage.init)))
    theirs, ours = other.config, model.config
    if wrong := [n for n in SHAPE if getattr(theirs, n) != getattr(ours, n)]:
        raise CheckpointError(
            f"{stage.init}: {wrong[0]} = {getattr(theirs, wrong[0])}, the recipe says {getattr(ours, wrong[0])}; "
            f"set model.{wrong[0]} (and {len(wrong) - 1} more) to the folder's values"
        )
    model.load_state_dict(other.state_dict())
    model.extend(theirs.context, theirs.rope_theta)


def load_teacher(model: Transformer, stage: Stage) -> Transformer:
    """The frozen model that a distillation stage learns from. Raises CheckpointError."""
    teacher = load_model(Path(str(stage.teacher)), compute_dtype=model.compute_dtype)
    if teacher.config.vocab_size != model.config.vocab_size:
        raise CheckpointError(
            f"teacher {stage.teacher} has {teacher.config.vocab_size} tokens, the model "
            f"{model.config.vocab_size}; a teacher must share the tokenizer"
        )
    teacher.use_kernels(model.kernels)
    return teacher.to(model.embedding.device).requires_grad_(False)
