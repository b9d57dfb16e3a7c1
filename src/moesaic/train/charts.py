"""Charts as inline SVG, drawn without a library. Colours are CSS classes, to follow the reader's theme.

Series i is drawn in class `s{i}`, heat cells in `over` and `under`, the stronger the further from even.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Point = tuple[float, float]
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 22, 40  # margins of the plot, in SVG units
MAX_POINTS = 400
EMPTY = Markup('<p class="empty">Nothing measured yet.</p>')


@dataclass(frozen=True)
class Series:
    """A curve, or with `dots` a set of points joined by a thin line; `faint` puts it behind the others."""

    name: str
    points: Sequence[Point]
    color: int = 0
    dots: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Mark:
    """A vertical line at `x`, such as the beginning of a stage."""

    x: float
    label: str


def short(value: float) -> str:
    """A number as on an axis: 1.5M, 20k, 0.25, 3e-4."""
    size = abs(value)
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size >= scale * 0.9995:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}" if size >= 0.01 or value == 0 else f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")


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


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values that divide [low, high] into about `wanted` parts."""
    raw = (high - low) / wanted
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(m * scale for m in (1, 2, 5, 10) if m * scale >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    width: int = 520,
    height: int = 250,
    zero: bool = False,
    marks: Sequence[Mark] = (),
) -> Markup:
    """Curves with axes, and a legend when there is more than one name. `zero`: y starts at 0."""
    shown = [Series(s.name, thin(_finite(s.points)), s.color, s.dots, s.faint) for s in series]
    everything = [p for s in shown for p in s.points]
    if not everything:
        return EMPTY
    x_low, x_high = _span([x for x, _ in everything], zero=True)
    y_low, y_high = _span([y for _, y in everything], zero)

    def place(x: float, y: float) -> Point:
        return (
            LEFT + (x - x_low) / (x_high - x_low) * (width - LEFT - RIGHT),
            height - BOTTOM - (y - y_low) / (y_high - y_low) * (height - TOP - BOTTOM),
        )

    parts: list[Markup] = []
    for value in ticks(y_low, y_high):
        _, y = place(x_low, value)
        parts.append(_svg('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>', LEFT, width - RIGHT, y, y))
        parts.append(_svg('<text x="{}" y="{}" text-anchor="end">{}</text>', LEFT - 7, y + 4, short(value)))
    for value in ticks(x_low, x_high, 6 if width < 700 else 10):
        x, _ = place(value, y_low)
        parts.append(_svg('<text x="{}" y="{}" text-anchor="middle">{}</text>', x, height - BOTTOM + 16, short(value)))
    for mark in marks:
        x, _ = place(mark.x, y_low)
        parts.append(_svg('<line class="mark" x1="{}" x2="{}" y1="{}" y2="{}"/>', x, x, TOP, height - BOTTOM))
        late = x > width * 0.8
        anchor, shift = ("end", -4) if late else ("start", 4)
        parts.append(
            _svg(
                '<text class="note" x="{}" y="{}" text-anchor="{}">{}</text>',
                x + shift,
                TOP - 8,
                anchor,
                mark.label,
            )
        )
    for one in sorted(shown, key=lambda s: not s.faint):
        parts.append(_curve(one, [place(x, y) for x, y in one.points]))
    parts.append(_svg('<text x="{}" y="{}" text-anchor="middle">{}</text>', (LEFT + width) / 2, height - 6, x_label))
    middle = (TOP + height - BOTTOM) / 2
    turned = '<text transform="translate(12 {}) rotate(-90)" text-anchor="middle">{}</text>'
    parts.append(_svg(turned, middle, y_label))
    return _legend(shown) + _frame(parts, width, height, f"{y_label} over {x_label}")


def heat_map(
    values: Sequence[Sequence[float]],
    column_label: str,
    row_label: str = "layer",
    *,
    width: int = 520,
    column_range: tuple[float, float] | None = None,
) -> Markup:
    """Cells `values[row][column]` around 1 = even: stronger colour is further from even.

    Columns are counted from 0, or run over `column_range`.
    """
    if not values or not values[0]:
        return EMPTY
    rows, columns = len(values), len(values[0])
    side = min(30.0, max(9.0, 330 / rows))
    height = round(rows * side) + BOTTOM + 4
    cell = (width - LEFT - RIGHT) / columns
    parts: list[Markup] = []
    for row, line in enumerate(values):
        y = 4 + row * side
        if row % -(-14 // max(1, round(side))) == 0:
            parts.append(_svg('<text x="{}" y="{}" text-anchor="end">{}</text>', LEFT - 7, y + side / 2 + 4, row))
        for column, value in enumerate(line):
            kind, strength = ("over", (value - 1) / 1.5) if value > 1 else ("under", 1 - value)
            title = f"{row_label} {row}, {column_label} {column}: {value:.2f} x even"
            told = Markup("") if column_range else _svg("<title>{}</title>", title)
            parts.append(
                _svg(
                    '<rect class="{}" fill-opacity="{}" x="{}" y="{}" width="{}" height="{}">{}</rect>',
                    kind,
                    round(0.06 + 0.94 * min(1.0, strength), 2),
                    LEFT + column * cell,
                    y,
                    max(0.5, cell - (1.5 if columns <= 64 else 0)),
                    side - 1.5,
                    told,
                )
            )
    low, high = column_range or (0, columns - 1)
    for value in ticks(low, high, 8) if high > low else [low]:
        if column_range is None and value != int(value):
            continue
        x = LEFT + ((value - low) / ((high - low) or 1) * (columns - 1) + 0.5) * cell
        parts.append(_svg('<text x="{}" y="{}" text-anchor="middle">{}</text>', x, height - BOTTOM + 16, short(value)))
    parts.append(
        _svg('<text x="{}" y="{}" text-anchor="middle">{}</text>', (LEFT + width) / 2, height - 6, column_label)
    )
    turned = '<text transform="translate(12 {}) rotate(-90)" text-anchor="middle">{}</text>'
    parts.append(_svg(turned, (height - BOTTOM) / 2, row_label))
    return _frame(parts, width, height, f"load by {row_label} and {column_label}")


def _curve(series: Series, places: Sequence[Point]) -> Markup:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    style = "faint" if series.faint else "thread" if series.dots else "curve"
    out = _svg('<polyline class="{} s{}" points="{}"/>', style, series.color, path)
    if series.dots or len(places) == 1:
        for x, y in places:
            out += _svg('<circle class="dot s{}" cx="{}" cy="{}" r="3"/>', series.color, x, y)
    return out


def _legend(series: Sequence[Series]) -> Markup:
    named = {s.name: s for s in series if s.name and s.points}
    if len(named) < 2:
        return Markup("")
    keys = [
        _svg('<span class="key"><i class="k{}{}"></i>{}</span>', s.color, " faint" * s.faint, n)
        for n, s in named.items()
    ]
    return Markup('<div class="legend">') + Markup("").join(keys) + Markup("</div>")


def _frame(parts: Sequence[Markup], width: int, height: int, title: str) -> Markup:
    opening = _svg('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">', width, height, title)
    return opening + Markup("").join(parts) + Markup("</svg>")


def _svg(template: str, *values: object) -> Markup:
    """Fill `{}` in `template`, escaping text and rounding coordinates to what can be seen."""
    return Markup(template.format(*(f"{v:.5g}" if isinstance(v, float) else escape(v) for v in values)))


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in points if y is not None and math.isfinite(y)]


def _span(values: Sequence[float], zero: bool) -> tuple[float, float]:
    """Limits of an axis, never empty."""
    low, high = min(values), max(values)
    if zero and low > 0:
        low = 0.0
    if high <= low:
        high = low + (abs(low) or 1.0)
    return low, high + (high - low) * 0.02
