"""What is trained: length, tokens and batch, as given, else the recipe's, else a habit. All verbs read it here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moesaic.errors import PlanError
from moesaic.plan.shape import Shape

if TYPE_CHECKING:
    from moesaic.recipe import Recipe


TOKENS_PER_PARAMETER = 20  # where no recipe says how long to train (Hoffmann et al. 2022)
BATCH_TOKENS = 4_194_304  # where no recipe says
SEQUENCE = 8192  # where no recipe says: pre-training is seldom at the full context
GRADIENT_BYTES = {"bf16": 2, "fp32": 4}


def micro_batches(seq_len: int) -> tuple[int, ...]:
    """Sequences of a micro-batch that are worth a look: powers of two up to 8, of short sequences up to 32k tokens."""
    most = max(8, 32_768 // seq_len)
    return tuple(1 << n for n in range(most.bit_length()))


@dataclass(frozen=True)
class Workload:
    """A training run without its devices. `batch` is in whole sequences, `batch_tokens` what was asked for."""

    seq_len: int
    tokens: float
    batch_tokens: float

    @property
    def batch(self) -> int:
        """Sequences of a step."""
        return int(self.batch_tokens // self.seq_len)


def workload(
    shape: Shape,
    recipe: Recipe | None,
    seq_len: int | None = None,
    tokens: float | None = None,
    batch_tokens: float | None = None,
) -> Workload:
    """What is given first, then the recipe's first stage at its last batch.

    Without a recipe: 8,192 tokens (or the context), 20 tokens per active parameter, batches of 4.2 M tokens. Raises
    PlanError for a batch that holds no sequence, or more tokens than the run.
    """
    stage = recipe.stages[0] if recipe and recipe.stages else None
    length = seq_len or (stage.seq_len if stage else min(shape.context, SEQUENCE))
    total = tokens or (float(stage.tokens) if stage else TOKENS_PER_PARAMETER * shape.active_parameters)
    size = batch_tokens or (stage.batch[-1].tokens if stage else BATCH_TOKENS)
    if size < length:
        raise PlanError(f"a batch of {size:,.0f} tokens holds no sequence of {length:,}; raise --batch")
    if total < size:
        raise PlanError(f"{total:,.0f} tokens are less than one batch of {size:,.0f}; lower --batch")
    return Workload(length, total, size)
