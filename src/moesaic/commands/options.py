"""Arguments and options that several verbs share, and the recipe they make."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from moesaic.recipe import Recipe

RecipeArg = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override one value; may be repeated.")
]
DataOption = Annotated[
    str | None,
    typer.Option("--data", metavar="X", help="Your data: .jsonl of chats, text file, folder, hf:owner/name."),
]
LayoutOption = Annotated[
    str | None,
    typer.Option("--layout", metavar="X", help="tp=2,pp=2,... or a file with a [layout] table (plan search --out)."),
]
StageOption = Annotated[str | None, typer.Option("--stage", metavar="NAME", help="Only this stage.")]
KernelsOption = Annotated[
    Literal["auto", "native", "torch"],
    typer.Option("--kernels", help="C++ where it builds (auto), C++ or an error, or torch."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def recipe_from(
    source: str,
    values: list[str] | None = None,
    data: str | None = None,
    stage: str | None = None,
    init: Path | None = None,
    layout: str | None = None,
) -> "Recipe":
    """The recipe as the command line changes it: single values last, so that they may speak of the new data.

    A micro-batch that comes with the layout is told on stderr, as it changes a stage.

    Raises RecipeError.
    """
    from moesaic.recipe import read_recipe
    from moesaic.recipe.overrides import with_data, with_init, with_layout, with_values

    recipe = read_recipe(source)
    if data is not None:
        recipe = with_data(recipe, data, stage)
    if init is not None:
        from moesaic.interop import read_shape

        recipe = with_init(recipe, init, stage, read_shape(init))
    if layout is None:
        return with_values(recipe, values or (), Path.cwd())
    changed = with_layout(recipe, layout, values or (), Path.cwd())
    for old, new in zip(recipe.stages, changed.stages, strict=True):
        if old.micro_batch != new.micro_batch and not any("micro_batch" in value for value in values or ()):
            print(f"note: stages.{new.name}.micro_batch = {new.micro_batch}, from --layout", file=sys.stderr)
    return changed
