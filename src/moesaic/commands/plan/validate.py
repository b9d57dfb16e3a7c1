"""`moesaic plan validate`"""

from pathlib import Path
from typing import Annotated

import typer

from moesaic.commands.options import JsonOption
from moesaic.commands.plan.options import StacksOption
from moesaic.commands.plan.show import ExplainOption, HtmlOption, show


def validate(
    csv: Annotated[
        Path | None, typer.Argument(metavar="[CSV]", help="Measurements; without it the 595 published ones.")
    ] = None,
    rows: Annotated[bool, typer.Option("--rows", help="List every row, and why one is not scored.")] = False,
    stacks: StacksOption = None,
    as_json: JsonOption = False,
    explain: ExplainOption = False,
    html: HtmlOption = None,
) -> None:
    """How far the planner is from measurements.

    From the published ones, or from yours.
    """
    from rich.console import Console

    from moesaic.plan import validate_plan

    with Console(stderr=True).status("pricing what was measured ..."):  # seen on a terminal only
        sheet = validate_plan(csv, rows=rows, stacks=stacks)
    show(sheet, as_json, explain, html, every_row=rows)
