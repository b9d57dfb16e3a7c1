"""`moesaic plan audit`."""

from pathlib import Path
from typing import Annotated

import typer

from moesaic.commands.options import JsonOption
from moesaic.commands.plan.show import ExplainOption, HtmlOption, show


def audit(
    claims: Annotated[
        Path | None, typer.Argument(metavar="CLAIMS.toml", help="Claims with their expressions; else the shipped 61.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="RECIPE", help="Compute total_parameters etc. from this (default: gpt4)."),
    ] = None,
    as_json: JsonOption = False,
    explain: ExplainOption = False,
    html: HtmlOption = None,
) -> None:
    """Can these claims be true? Computes them again, with units.

    Each is ok, in tension, garbled (and by which slip), loose or wrong.
    """
    from moesaic.plan import audit_plan

    sheet = audit_plan(claims, recipe)
    if not (as_json or explain or html):
        from moesaic.plan.audit.report import brief

        sheet = brief(sheet)
    show(sheet, as_json, explain, html)
