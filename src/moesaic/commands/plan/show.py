"""How a sheet is shown: as tables, as JSON, with every formula, or as a page."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from moesaic.plan.sheet import Figure, Sheet, Value

ExplainOption = Annotated[bool, typer.Option("--explain", help="Print the formula and the inputs of each number.")]
HtmlOption = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write one HTML file with pictures.")]


def show(sheet: "Sheet", as_json: bool = False, explain: bool = False, html: Path | None = None) -> None:
    """Print `sheet` as asked, and write the page. Raises PlanError when the page cannot be written."""
    if html is not None:
        from moesaic.plan.page import write_page

        write_page(sheet, html)
    if as_json:
        print(json.dumps(sheet.to_json(), indent=2))
        return
    _print(sheet, explain)
    if html is not None:
        print(f"page: {html}")


def _print(sheet: "Sheet", explain: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"[bold]{sheet.title}[/]")
    section = ""
    for figure in sheet.figures:
        if figure.section != section:
            section = figure.section
            console.print(f"\n[bold]{section}[/]")
        console.print(f"  {figure.label:<44} {text(figure.value)} {figure.unit}".rstrip(), markup=False)
        if explain:
            console.print(f"      = {_explained(figure)}", style="dim", markup=False)
    for table in sheet.tables:
        drawn = Table(title=table.title, title_justify="left", title_style="bold")
        for key in table.rows[0] if table.rows else ():
            numbers = all(isinstance(row[key], (int, float)) for row in table.rows)
            drawn.add_column(key.replace("_", " "), justify="right" if numbers else "left", overflow="fold")
        for row in table.rows:
            drawn.add_row(*(text(v) for v in row.values()))
        console.print()
        console.print(drawn, markup=False)
    for note in sheet.notes:
        console.print(f"\nnote: {note}", markup=False)


def _explained(figure: "Figure") -> str:
    inputs = ", ".join(f"{name} = {text(value)}" for name, value in figure.inputs.items())
    return f"{figure.formula}{f'   with {inputs}' if inputs else ''}"


def text(value: "Value") -> str:
    """A value as people read it: thousands in groups, four significant digits, p50 with its interval."""
    from moesaic.plan.sheet import Interval

    if isinstance(value, Interval):
        return f"{text(value.p50)} ({text(value.p10)} to {text(value.p90)})"
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.4g}"
    return f"{value:.4g}"
