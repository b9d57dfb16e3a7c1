"""`moesaic data ...`"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesaic.commands.options import DataOption, JsonOption, RecipeArg, SetOption, StageOption, recipe_from

if TYPE_CHECKING:
    from moesaic.data import DataFolder

data_app = typer.Typer(
    help="Build and inspect training data.",
    epilog="Example: moesaic data build pocket",
    no_args_is_help=True,
    rich_markup_mode=None,
)
HomeOption = Annotated[Path, typer.Option("--home", metavar="FOLDER", help="Where data folders stand.")]
HOME = Path("runs/data")  # where `train` looks for them


@data_app.command("build", epilog="Example: moesaic data build pocket")
def build(
    recipe: RecipeArg,
    values: SetOption = None,
    data: DataOption = None,
    stage: StageOption = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Read, filter and encode the sources of a recipe. `train` does it by itself."""
    from moesaic.data import build_data

    chosen = recipe_from(recipe, values, data, stage)
    _print(build_data(chosen, home, progress=lambda line: print(line, file=sys.stderr)), as_json)


@data_app.command("inspect", epilog="Example: moesaic data inspect pocket --json")
def inspect(
    recipe: RecipeArg,
    values: SetOption = None,
    data: DataOption = None,
    stage: StageOption = None,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Check built data and print its card: sources, licences, epochs, what was left out."""
    from moesaic.data import DataFolder, data_path

    _print(DataFolder.open(data_path(recipe_from(recipe, values, data, stage), home), verify=True), as_json)


def _print(folder: "DataFolder", as_json: bool) -> None:
    if as_json:
        print(json.dumps({"path": str(folder.path), **folder.manifest}, indent=2))
    else:
        print((folder.path / "README.md").read_text(encoding="utf-8"))
        print(f"in {folder.path}")
