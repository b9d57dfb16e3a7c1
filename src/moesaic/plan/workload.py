"""What is trained: model, tokens, batch and length, from a recipe's first stage or from the command line."""

from moesaic.errors import PlanError
from moesaic.plan.job import Job
from moesaic.plan.quantity import parse_context, parse_count
from moesaic.plan.shape import Shape
from moesaic.plan.shapes import read_source

CHINCHILLA = 20.0  # tokens per active parameter, where nothing else is said (Hoffmann et al. 2022)
BATCH = 4_000_000.0  # tokens


def read_workload(
    source: str,
    tokens: str | None = None,
    batch: str | None = None,
    seq_len: str | None = None,
    precision: str = "bf16",
    gradient_bytes: int = 4,
    imbalance: float = 1.0,
) -> tuple[Shape, Job, float]:
    """Shape, job and tokens of a recipe, a shape's name or a config.json; what is given takes precedence.

    Without a recipe: 20 tokens per active parameter, batches of 4 M tokens, the model's context. Raises PlanError.
    """
    shape, recipe = read_source(source)
    stage = recipe.stages[0] if recipe is not None and recipe.stages else None
    length = parse_context(seq_len, "--seq-len") if seq_len else stage.seq_len if stage else shape.context
    size = parse_count(batch, "--batch") if batch else float(stage.batch[-1].tokens) if stage else BATCH
    budget = parse_count(tokens, "--tokens") if tokens else float(stage.tokens) if stage else 0.0
    if size < length:
        raise PlanError(
            f"a batch of {size:,.0f} tokens holds no sequence of {length:,}; raise --batch or lower --seq-len"
        )
    job = Job(length, int(size // length), precision, gradient_bytes, imbalance=imbalance)
    return shape, job, budget or CHINCHILLA * shape.active_parameters
