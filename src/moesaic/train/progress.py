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
    """Another number of processes is needed: for the layout, or as the batch asks for more or fewer replicas."""

    def __init__(self, layout: Layout, why: str, remedy: str) -> None:
        """`layout`: the one to go on with."""
        self.processes = layout.world
        degrees = ", ".join(f"{n} = {getattr(layout, n)}" for n in ("pp", "dp", "cp", "tp") if getattr(layout, n) > 1)
        count = f"{layout.world} processes ({degrees})" if degrees else "1 process"
        super().__init__(f"{why} {count}{remedy}")


def check_processes(recipe: Recipe, stage: Stage, stage_tokens: int, running: int) -> Layout:
    """The layout after `stage_tokens` tokens of a stage. Raises ResizeNeeded when it is not for `running` processes."""
    layout = layout_for(recipe, stage, stage_tokens)
    if layout.world != running:
        remedy = f" and {running} {'are' if running > 1 else 'is'} running; start {layout.world}, or change --layout"
        raise ResizeNeeded(layout, f"stage {stage.name} of {recipe.name} needs", remedy)
    return layout


def layout_for(recipe: Recipe, stage: Stage, stage_tokens: int) -> Layout:
    """The recipe's layout with the replicas of the batch that comes after `stage_tokens` tokens of a stage."""
    step = [b for b in stage.batch if b.after_tokens <= stage_tokens][-1]
    return recipe.layout.model_copy(update={"dp": step.dp or recipe.layout.dp})
