"""A sheet as one HTML file: remarks, figures with their formulas, pictures, tables; no scripts, nothing to fetch."""

import math
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from moesaic.plan.picture import picture_of, write_page_file
from moesaic.plan.sheet import Figure, Interval, Sheet, Table
from moesaic.plan.wording import columns_of, heading, is_nothing, is_share, misses, text

MOST_ROWS = 1000  # of a table, on a page that should open at once


@dataclass(frozen=True)
class Range:
    """Where an interval's p10, p50 and p90 stand on a scale that begins at 0, in percent of its length."""

    begin: float
    middle: float
    end: float


def write_page(sheet: Sheet, path: Path) -> None:
    """Write `sheet` as one page to `path`; a reader finds the old or the new page, never half of one.

    Raises PlanError when it cannot be written.
    """
    write_page_file(path, page_of(sheet))


def page_of(sheet: Sheet) -> str:
    """The page as text."""
    from jinja2 import Environment, StrictUndefined  # here: prices without a page need no templates

    from moesaic.charts import stylesheet

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"text": text, "heading": heading}
    told = [f for f in sheet.figures if not is_nothing(f)]
    template = environment.from_string(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    return template.render(
        style=stylesheet(),
        title=sheet.title,
        notes=sheet.notes,
        leading=[_grid(table) for table in sheet.tables if table.rows and table.first],
        sections=[(name, [_row(f) for f in group]) for name, group in groupby(told, key=lambda f: f.section)],
        charts=[(chart.title, picture_of(chart)) for chart in sheet.charts],
        tables=[_grid(table) for table in sheet.tables if table.rows and not table.first],
    )


def range_of(interval: Interval) -> Range | None:
    """The bar of an interval; None where a bar would say nothing (not finite, not positive, out of order)."""
    low, middle, high = interval.p10, interval.p50, interval.p90
    if not (0 <= low <= middle <= high < math.inf and high > 0):
        return None
    scale = 100 / (1.1 * high)
    return Range(low * scale, middle * scale, high * scale)


def _row(figure: Figure) -> dict[str, Any]:
    value = figure.value
    interval = value if isinstance(value, Interval) else None
    share = is_share(figure.unit)
    return {
        "figure": figure,
        "value": text(interval.p50 if interval else value, share),
        "unit": "" if share else figure.unit,
        "between": f"{text(interval.p10, share)} to {text(interval.p90, share)}" if interval else "",
        "range": range_of(interval) if interval else None,
    }


def _grid(table: Table) -> dict[str, Any]:
    """Columns with the side they lean to, and rows with whether they fit."""
    shown = table.rows[:MOST_ROWS]
    columns = columns_of(shown)
    rows = [([column.cells[i] for column in columns], misses(row)) for i, row in enumerate(shown)]
    return {"title": table.title, "columns": columns, "rows": rows, "left": max(0, len(table.rows) - MOST_ROWS)}
