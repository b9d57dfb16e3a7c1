"""How a sheet is shown: as tables, as JSON, with every formula, or as a page."""

import json
import os
import textwrap
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from moesaic.plan.sheet import Figure, Sheet, Table
    from moesaic.plan.wording import Column

ExplainOption = Annotated[bool, typer.Option("--explain", help="Print the formula and the inputs of each number.")]
HtmlOption = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write one HTML file with pictures.")]

MOST_ROWS = 100  # of a table
PROSE = 100  # remarks and formulas are read in lines of at most this
LONGEST_LABEL = 56
WORDS, FEWEST = 48, 16  # a column of words is at most this wide, and shrinks to this before columns move below
SHORT = 12  # words of a figure up to this long stand in the column of its numbers
GAP = 2  # between columns
PIPED = 1000  # a table that goes into a file or another program stays in one piece


def show(
    sheet: "Sheet", as_json: bool = False, explain: bool = False, html: Path | None = None, every_row: bool = False
) -> None:
    """Print `sheet` as asked, and write the page. Raises PlanError when the page cannot be written.

    Tables are cut after `MOST_ROWS` rows unless `every_row`.
    """
    if html is not None:
        from moesaic.plan.page import write_page

        write_page(sheet, html)
    if as_json:
        print(json.dumps(sheet.to_json(), indent=2, allow_nan=False))
        return
    _print(sheet, explain, every_row)
    if html is not None:
        print(f"\npage: {html}")


def _print(sheet: "Sheet", explain: bool, every_row: bool) -> None:
    from rich.console import Console

    from moesaic.plan.wording import is_nothing

    console = Console()  # it is given Text only, in which nothing is markup
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPED
    _say(console, sheet.title, "bold")
    for table in (t for t in sheet.tables if t.first):
        _table(console, table, len(table.rows) if every_row else MOST_ROWS)
    told = [f for f in sheet.figures if explain or not is_nothing(f)]
    for section, figures in groupby(told, key=lambda f: f.section):
        _say(console, f"\n{section}", "bold")
        _figures(console, list(figures), explain)
    for table in (t for t in sheet.tables if not t.first):
        _table(console, table, len(table.rows) if every_row else MOST_ROWS)
    for note in sheet.notes:
        console.print()
        _prose(console, f"note: {note}", "", "      ")


def _figures(console: "Console", figures: list["Figure"], explain: bool) -> None:
    """A line a figure; labels, numbers and units of a section stand in columns of their own."""
    from moesaic.plan.sheet import Interval
    from moesaic.plan.wording import is_number, is_share, text

    values = [text(f.value.p50 if isinstance(f.value, Interval) else f.value, is_share(f.unit)) for f in figures]
    label_width = min(LONGEST_LABEL, max(len(f.label) for f in figures))
    short = [v for f, v in zip(figures, values, strict=True) if is_number(f.value) or len(v) <= SHORT]
    width = max(map(len, short), default=0)
    united = [f.unit for f in figures if isinstance(f.value, Interval) and not is_share(f.unit)]
    unit_width = max(map(len, united), default=0)
    for figure, value in zip(figures, values, strict=True):
        words = f"{value:>{width}}"  # a longer one stands where the column begins
        share = is_share(figure.unit)
        line = f"{figure.label:<{label_width}}  {words} {'' if share else figure.unit}"
        if isinstance(figure.value, Interval):
            between = f"{text(figure.value.p10, share)} to {text(figure.value.p90, share)}"
            line = f"{line:<{label_width + width + 3 + unit_width}}  {between}"
        hanging = " " * (label_width + 4)
        if len(line) + 2 <= console.width or len(hanging) > console.width / 2:
            _say(console, f"  {line.rstrip()}")
        else:
            _prose(console, line.rstrip(), "  ", hanging)
        if explain:
            _explain(console, figure)


def _explain(console: "Console", figure: "Figure") -> None:
    from moesaic.plan.wording import text

    if figure.formula:
        _prose(console, figure.formula, "      = ", "        ", "dim")
    if figure.inputs:
        inputs = ", ".join(f"{name} = {text(value)}" for name, value in figure.inputs.items())
        _prose(console, inputs, "        with ", "             ", "dim")


def _table(console: "Console", table: "Table", most: int) -> None:
    """The first rows of a table. Columns that do not fit beside the others follow below, with the first repeated."""
    from moesaic.plan.wording import columns_of, misses

    _say(console, f"\n{table.title}", "bold")
    rows = table.rows[:most]
    columns = {column.key: column for column in columns_of(rows)}
    if not columns:
        _say(console, "  none")
        return
    widths = {}
    for key, column in columns.items():
        longest = max(map(len, column.cells))
        word = max(map(len, column.heading.split()), default=0)
        widths[key] = max(longest if column.is_number else min(longest, WORDS, console.width // 2), word)
    _squeeze(widths, [key for key, column in columns.items() if not column.is_number], console.width)
    dimmed = [misses(row) for row in rows]
    for number, block in enumerate(_blocks(list(columns), widths, console.width)):
        if number:
            console.print()
        _block(console, [(columns[key], widths[key]) for key in block], dimmed)
    if len(table.rows) > len(rows):
        _say(console, f"  ... {len(table.rows) - len(rows):,} more rows, --json shows all", "dim")


def _squeeze(widths: dict[str, int], words: list[str], room: int) -> None:
    """Narrow the columns of words until all stand beside each other; leave them when they cannot."""
    total = sum(widths.values()) + GAP * len(widths)
    if total - sum(max(0, widths[key] - FEWEST) for key in words) > room:
        return
    for _ in range(total - room):
        widths[max(words, key=widths.__getitem__)] -= 1


def _blocks(keys: list[str], widths: dict[str, int], room: int) -> list[list[str]]:
    """The columns that stand beside each other in each part of a table; each part begins with the first column."""
    first, blocks = keys[0], [[keys[0]]]
    used = widths[first] + GAP
    for key in keys[1:]:
        if used + widths[key] + GAP > room and len(blocks[-1]) > 1:
            blocks.append([first])
            used = widths[first] + GAP
        blocks[-1].append(key)
        used += widths[key] + GAP
    return blocks


def _block(console: "Console", columns: list[tuple["Column", int]], dimmed: list[bool]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column, width in columns:
        head = Text("\n".join(textwrap.wrap(column.heading, width) or [""]))
        drawn.add_column(head, justify="right" if column.is_number else "left", width=width, overflow="fold")
    for row, dim in enumerate(dimmed):
        drawn.add_row(*(Text(column.cells[row]) for column, _ in columns), style="dim" if dim else None)
    with console.capture() as capture:
        console.print(drawn)
    for line in capture.get().splitlines():
        print(line.rstrip())


def _prose(console: "Console", words: str, first: str, later: str, style: str = "") -> None:
    """Text in lines that fit, `first` and `later` being their indents. Long names stay whole."""
    width = min(console.width, PROSE)
    for line in textwrap.wrap(words, width, initial_indent=first, subsequent_indent=later, break_long_words=False):
        _say(console, line, style)


def _say(console: "Console", line: str, style: str = "") -> None:
    from rich.text import Text

    from moesaic.plan.quantity import printable

    start = "\n" * line.startswith("\n")  # an empty line before a head
    console.print(Text(start + printable(line.removeprefix("\n")), style=style), soft_wrap=True)
