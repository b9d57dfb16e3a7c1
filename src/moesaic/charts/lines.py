"""Curves and clouds of points."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from moesaic.charts.axis import Axis, axis_of
from moesaic.charts.svg import EMPTY, END, MIDDLE, Picture, color, label, level, marked, short, tag, turned_label

Point = tuple[float, float]
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 22, 40  # margins of the plot, in SVG units
MAX_POINTS = 400


@dataclass(frozen=True)
class Series:
    """A curve, or with `dots` a set of points joined by a thin line; `faint` puts it behind the others.

    `alone` leaves the line out and draws every point, with the text of `told` (or its values) under the pointer.
    """

    name: str
    points: Sequence[Point]
    color: int = 0
    dots: bool = False
    faint: bool = False
    alone: bool = False
    told: Sequence[str] = ()


@dataclass(frozen=True)
class Mark:
    """A vertical line at `x`, such as the beginning of a stage."""

    x: float
    label: str


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` points: means of neighbours."""
    stride = -(-len(points) // limit) if points else 1
    groups = [points[i : i + stride] for i in range(0, len(points), stride)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def smooth(points: Sequence[Point], keep: float = 0.9) -> list[Point]:
    """Exponential moving average of y, without the bias of its start (Kingma & Ba 2015, sec. 3)."""
    out: list[Point] = []
    total = weight = 0.0
    for x, y in points:
        total, weight = keep * total + (1 - keep) * y, keep * weight + (1 - keep)
        out.append((x, total / weight))
    return out


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    width: int = 520,
    height: int = 250,
    zero: bool = False,
    marks: Sequence[Mark] = (),
    log: bool = False,
) -> Picture:
    """Curves or points with axes, and a legend when there is more than one name.

    `zero`: y starts at 0. `log`: an axis whose values span more than a factor of 100 is logarithmic; else both are
    even and x starts at 0.
    """
    shown = [_drawable(s) for s in series]
    everything = [p for s in shown for p in s.points]
    if not everything:
        return EMPTY
    marks = [m for m in marks if math.isfinite(m.x)]
    x_axis = axis_of([x for x, _ in everything] + [m.x for m in marks], LEFT, width - RIGHT, zero=not log, log=log)
    y_axis = axis_of([y for _, y in everything], height - BOTTOM, TOP, zero, log)
    parts = _axes(x_axis, y_axis, width, height, x_label, y_label)
    parts += marked([(x_axis.place(m.x), m.label) for m in marks], LEFT, width, TOP, height - BOTTOM)
    for one in sorted(shown, key=lambda s: not s.faint):
        places = [(x_axis.place(x), y_axis.place(y)) for x, y in one.points]
        parts.append(_points(one, places, x_label, y_label) if one.alone else _curve(one, places))
    named = {s.name: f"{color(s.color)}{' faint' * s.faint}" for s in shown if s.name and s.points}
    legend = [(kind, name) for name, kind in named.items()] if len(named) > 1 else []
    return Picture(Markup("").join(parts), width, height, f"{y_label} over {x_label}", legend)


def _axes(x_axis: Axis, y_axis: Axis, width: int, height: int, x_label: str, y_label: str) -> list[Markup]:
    parts: list[Markup] = []
    for value in y_axis.ticks():
        y = y_axis.place(value)
        parts += [level("grid", LEFT, width - RIGHT, y), label(LEFT - 7, y + 4, short(value), END)]
    for value in x_axis.ticks(6 if width < 700 else 10):
        parts.append(label(x_axis.place(value), height - BOTTOM + 16, short(value), MIDDLE))
    parts.append(label((LEFT + width) / 2, height - 6, x_label, MIDDLE))
    parts.append(turned_label((TOP + height - BOTTOM) / 2, y_label))
    return parts


def _curve(series: Series, places: Sequence[Point]) -> Markup:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    style = "faint" if series.faint else "thread" if series.dots else "curve"
    out = tag('<polyline class="{} {}" points="{}"/>', style, color(series.color), path)
    if series.dots or len(places) == 1:
        for x, y in places:
            out += tag('<circle class="dot {}" cx="{}" cy="{}" r="3"/>', color(series.color), float(x), float(y))
    return out


def _points(series: Series, places: Sequence[Point], x_label: str, y_label: str) -> Markup:
    out = []
    for i, ((x, y), (x_value, y_value)) in enumerate(zip(places, series.points, strict=True)):
        values = f"{x_label}: {short(x_value)}, {y_label}: {short(y_value)}"
        told = f"{series.told[i]}; {values}" if i < len(series.told) else values
        template = '<circle class="point {}" cx="{}" cy="{}" r="4"><title>{}</title></circle>'
        out.append(tag(template, color(series.color), float(x), float(y), told))
    return Markup("").join(out)


def _drawable(series: Series) -> Series:
    """The series without what has no place; a curve also without more points than can be told apart."""
    keep = [i for i, (x, y) in enumerate(series.points) if y is not None and math.isfinite(x) and math.isfinite(y)]
    points = [series.points[i] for i in keep]
    told = [series.told[i] for i in keep if i < len(series.told)]
    points = points if series.alone else thin(points)
    return Series(series.name, points, series.color, series.dots, series.faint, series.alone, told)
