"""`moesaic recipe ...`"""

import json
from pathlib import Path
from typing import Annotated

import typer

from moesaic.commands.options import JsonOption, RecipeArg, SetOption, recipe_from
from moesaic.errors import RecipeError

recipe_app = typer.Typer(
    help="Show, compare and start recipes.",
    epilog="Example: moesaic recipe show pocket",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@recipe_app.command("show", epilog="Example: moesaic recipe show pocket --set model.n_layers=4")
def show(recipe: RecipeArg, values: SetOption = None, as_json: JsonOption = False) -> None:
    """Print a recipe with all defaults filled in."""
    from moesaic.recipe.show import to_toml

    found = recipe_from(recipe, values)
    if as_json:
        print(json.dumps(found.model_dump(mode="json"), indent=2))
    else:
        print(to_toml(found), end="")


@recipe_app.command("diff", epilog="Example: moesaic recipe diff pocket runs/pocket/recipe.toml")
def diff(left: RecipeArg, right: RecipeArg, as_json: JsonOption = False) -> None:
    """Print the values in which two recipes differ, by the path that --set takes."""
    from moesaic.recipe.show import diff as differences

    found = differences(recipe_from(left), recipe_from(right))
    if as_json:
        print(json.dumps([vars(d) for d in found], indent=2))
        return
    for d in found:
        print(f"{d.path}: {json.dumps(d.left)} -> {json.dumps(d.right)}")


@recipe_app.command("init", epilog="Example: moesaic recipe init pocket --out mine.toml")
def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Shipped recipe to start from.")] = "pocket",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write here; never over a file.")] = None,
) -> None:
    """Print a shipped recipe, comments and all, as a start for your own."""
    from moesaic.recipe.show import init as start

    text = start(name)
    if out is None:
        print(text, end="")
        return
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise RecipeError(f"cannot write {out}: {error.strerror}; choose another --out") from error
    print(f"wrote {out}; train it with: moesaic train {out}")


@recipe_app.command("schema", epilog="Example: moesaic recipe schema > recipe.schema.json")
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from moesaic.recipe.show import schema as describe

    print(json.dumps(describe(), indent=2))
