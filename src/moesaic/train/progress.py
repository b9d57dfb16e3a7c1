"""Where a run stands, and which layout computes what comes next."""

from dataclasses import dataclass

from moesaic.errors import LayoutError
from moesaic.recipe import Layout, Recipe, Stage


@dataclass
class Progress:
    """Tokens count inputs without padding and are the clock of every schedule."""

    stage: int = 0
    step: int = 0
    stage_step: int = 0
    stage_tokens: int = 0
    stage_budget: int = 0


class ResizeNeeded(LayoutError):  # noqa: N818
    """The run goes on with another number of processes: its batch asks for more or fewer replicas."""

    def __init__(self, layout: Layout, why: str) -> None:
        """`layout`: the one to go on with."""
        self.processes, self.why = layout.world, why
        super().__init__(f"{why}: start {layout.world} processes with --resume")


def layout_for(recipe: Recipe, stage: Stage, stage_tokens: int) -> Layout:
    """The recipe's layout with the replicas of the batch that comes after `stage_tokens` tokens of a stage."""
    step = [b for b in stage.batch if b.after_tokens <= stage_tokens][-1]
    return recipe.layout.model_copy(update={"dp": step.dp or recipe.layout.dp})
