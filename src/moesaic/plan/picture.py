"""The charts of a sheet, drawn: for the page, or as files of their own."""

import math
from collections.abc import Sequence
from pathlib import Path

from moesaic.charts import (
    EMPTY,
    Mark,
    Picture,
    Series,
    bar_chart,
    line_chart,
    timeline_chart,
    tornado_chart,
)
from moesaic.durable import write_durably
from moesaic.errors import PlanError
from moesaic.plan.sheet import Chart

WIDTH, HEIGHT = 1080, 320


def picture_of(chart: Chart) -> Picture:
    """`chart` drawn, or EMPTY where there is nothing to draw. Axes that span a factor above 100 are logarithmic.

    Raises ValueError for a tornado without its centre in `marks`.
    """
    marks = [Mark(at, name) for at, name in chart.marks]
    match chart.kind:
        case "lines" | "points":
            alone = chart.kind == "points"
            series = [
                Series(name, points, i, alone=alone, dots=len(points) <= 24, told=chart.told.get(name, ()))
                for i, (name, points) in enumerate(chart.series.items())
            ]
            return line_chart(series, chart.x, chart.y, width=WIDTH, height=HEIGHT, marks=marks, log=True)
        case "bars":
            parts = {name: _by_category(points) for name, points in chart.series.items()}
            return bar_chart(parts, chart.categories, chart.x, chart.y, width=WIDTH, marks=marks)
        case "tornado":
            if len(marks) != 1:
                raise ValueError(f"the tornado {chart.key} needs one mark: its centre")
            low, high = (_by_category(chart.series.get(end, ())) for end in ("low", "high"))
            return tornado_chart(low, high, chart.categories, chart.x, chart.y, marks[0], width=WIDTH)
        case "timeline":
            return timeline_chart(chart.spans, chart.x, chart.y, lanes=chart.categories, width=WIDTH)


def write_svg(chart: Chart, path: Path) -> None:
    """Write `chart` as an SVG file that needs nothing else and follows the reader's light or dark theme.

    Raises PlanError when there is nothing to draw or the file cannot be written.
    """
    picture = picture_of(chart)
    if picture is EMPTY:
        raise PlanError(f"{path}: the chart {chart.key} has nothing to draw; check the input that it is made of")
    write_page_file(path, picture.to_svg(chart.title))


def write_page_file(path: Path, content: str) -> None:
    """Write a whole text file or leave the old one. Raises PlanError."""
    try:
        write_durably(path, content.encode(errors="replace"))
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise PlanError(f"{path} cannot be written: {reason}; name another file") from error


def _by_category(points: Sequence[tuple[float, float]]) -> dict[int, float]:
    return {int(x): float(y) for x, y in points if math.isfinite(x)}
