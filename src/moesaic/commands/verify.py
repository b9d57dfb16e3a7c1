"""`moesaic verify`"""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from moesaic.commands.options import JsonOption
from moesaic.commands.progress import progress_on_stderr
from moesaic.errors import LayoutError

if TYPE_CHECKING:
    from moesaic.train.verify import Verdict

DEFAULT = (
    "dp=2",
    "tp=2",
    "pp=2",
    "dp=4,ep=4,zero=3",
    "dp=2,cp=2,ep=2",
    "pp=2,dp=2,ep=2,schedule=zero_bubble",
    "pp=2,tp=2,ep=2,recompute=full",
)

RecipeArg = Annotated[
    str | None,
    typer.Argument(
        metavar="[RECIPE]", help="Check a small model of this recipe's kind, in its layout unless --layout."
    ),
]
LayoutsOption = Annotated[
    list[str] | None,
    typer.Option("--layout", metavar="X", help="tp=2,pp=2,ep=2 or a file with a [layout] table; may be repeated."),
]
LimitOption = Annotated[float, typer.Option("--limit", metavar="S", min=1, help="Seconds that one layout may take.")]


def verify(
    recipe: RecipeArg = None,
    layout: LayoutsOption = None,
    limit: LimitOption = 300.0,
    as_json: JsonOption = False,
) -> None:
    """Prove a layout: does it compute what one process computes?

    Starts the ranks of each layout on this machine's CPUs and compares loss, every gradient, norm, and weights after
    two steps. Exits with 1 when something differs and names the first tensor. Without --layout: seven layouts of 2
    and 4 ranks.
    """
    from moesaic.recipe import read_recipe
    from moesaic.recipe.layout_text import parse_layout
    from moesaic.train import verify as room

    chosen = None if recipe is None else read_recipe(recipe)
    if layout:
        layouts = [parse_layout(text) for text in layout]
    elif chosen is not None:
        layouts = [chosen.layout]
    else:
        layouts = [parse_layout(text) for text in DEFAULT]
    like = None if chosen is None else chosen.model
    for one in layouts:
        if found := room.problems(one, like):
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise LayoutError(f"--layout {room.words(one)}: {found[0]}{more}")
    verdicts: list[Verdict] = []
    references: dict[room.Case, room.Reference] = {}
    with progress_on_stderr() as progress:
        tell = progress("verify")
        for number, one in enumerate(layouts):
            tell(2 * number, 2 * len(layouts))
            case = room.case_for(one, like)
            if case not in references:
                references[case] = room.reference(case)
            tell(2 * number + 1, 2 * len(layouts))
            verdicts.append(room.check(case, one, references[case], limit))
    if as_json:
        print(json.dumps([_row(v) for v in verdicts], indent=2))
    else:
        _print(verdicts)
    if not all(v.equal for v in verdicts):
        raise typer.Exit(1)


def _row(verdict: "Verdict") -> dict[str, object]:
    from moesaic.train.verify import words

    first = verdict.first
    return {
        "layout": words(verdict.layout),
        "ranks": verdict.layout.world,
        "equal": verdict.equal,
        "largest_difference": None if verdict.error else dict(verdict.largest),
        "first": None if first is None else {"tensor": first.what, "difference": first.largest, "scale": first.scale},
        "error": verdict.error,
    }


def _print(verdicts: Sequence["Verdict"]) -> None:
    """A table, and below it what differs."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from moesaic.train.verify import KINDS, TOLERANCE, TOLERANCE_BF16, words

    console = Console(width=None if sys.stdout.isatty() else 120)
    lines = box.HEAVY_HEAD if console.is_terminal else box.MARKDOWN
    table = Table("layout", "ranks", *KINDS, "verdict", box=lines)
    for v in verdicts:
        numbers = ["-" if v.error else f"{v.largest[kind]:.1e}" for kind in KINDS]
        verdict = "failed" if v.error else "equal" if v.equal else "differs"
        table.add_row(words(v.layout), str(v.layout.world), *numbers, verdict)
    console.print(table)
    for v in verdicts:
        said = None
        if v.error:
            said = f"{words(v.layout)}: {v.error}"
        elif v.first:
            said = f"{words(v.layout)}: first differs {v.first.what}, by {v.first.largest:.2g} (its largest value is "
            said += f"{v.first.scale:.2g} or less)"
        if said:
            console.print(said, markup=False, highlight=False, soft_wrap=True)
    coarse = (
        f" ({TOLERANCE_BF16:g} after a reduction in bf16)" if any(v.layout.reduce == "bf16" for v in verdicts) else ""
    )
    console.print(
        f"largest differences from one process; equal: at most {TOLERANCE:g} of a tensor's largest value{coarse}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
