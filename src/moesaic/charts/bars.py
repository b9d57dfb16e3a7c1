"""Lying bars: parts that add up, and a tornado of what an answer hangs on."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from moesaic.charts.axis import Axis, axis_of
from moesaic.charts.lines import Mark
from moesaic.charts.svg import (
    CHARACTER,
    EMPTY,
    MIDDLE,
    Picture,
    color,
    cut,
    label,
    marked,
    short,
    tag,
    turned_label,
    upright,
)

TOP, BOTTOM, RIGHT = 20, 40, 62  # room for the marks' names, the axis, and the number at a bar's end
LOWER, UPPER = 0, 1  # colours of the two sides of a tornado


def bar_chart(
    series: Mapping[str, Mapping[int, float]],
    categories: Sequence[str],
    category_label: str,
    value_label: str,
    *,
    width: int = 1080,
    marks: Sequence[Mark] = (),
) -> Picture:
    """A bar a category, in which `series[name][category]` lie end to end, with their sum. Negative parts are left out.

    `marks` are values such as the capacity of a device.
    """
    parts_of = [
        {name: y[i] for name, y in series.items() if math.isfinite(y.get(i, 0.0)) and y.get(i, 0.0) > 0}
        for i in range(len(categories))
    ]
    sums = [sum(parts.values()) for parts in parts_of]
    if not any(sums):
        return EMPTY
    marks = [m for m in marks if math.isfinite(m.x)]
    left, side, height = _frame(categories)
    axis = axis_of([0.0, *sums, *(m.x for m in marks)], left, width - RIGHT)
    drawn = _scenery(axis, categories, (category_label, value_label), width, height, side)
    colors = {name: color(i) for i, name in enumerate(series)}
    for row, (category, parts) in enumerate(zip(categories, parts_of, strict=True)):
        y, begin = TOP + row * side + side * 0.14, 0.0
        for name, value in parts.items():
            told = f"{category}, {name}: {short(value)} of {short(sums[row])}"
            drawn.append(_bar(colors[name], axis.place(begin), axis.place(begin + value), y, side * 0.72, told))
            begin += value
        if side >= 11:
            drawn.append(
                label(axis.place(sums[row]) + 5, TOP + row * side + side / 2 + 4, short(sums[row]), kind="note")
            )
    drawn += marked([(axis.place(m.x), m.label) for m in marks], left, width, TOP - 4, height - BOTTOM)
    title = f"{value_label} by {category_label}"
    legend = [(kind, name) for name, kind in colors.items()] if len(colors) > 1 else []
    return Picture(Markup("").join(drawn), width, height, title, legend)


def tornado_chart(
    low: Mapping[int, float],
    high: Mapping[int, float],
    categories: Sequence[str],
    category_label: str,
    value_label: str,
    centre: Mark,
    *,
    width: int = 1080,
) -> Picture:
    """What the answer becomes when one input takes its low or its high end, the widest span first, around `centre`."""
    spans = [
        (categories[i], low[i], high[i])
        for i in range(len(categories))
        if i in low and i in high and math.isfinite(low[i]) and math.isfinite(high[i])
    ]
    if not spans or not math.isfinite(centre.x):
        return EMPTY
    spans.sort(key=lambda s: -abs(s[2] - s[1]))
    names = [name for name, _, _ in spans]
    left, side, height = _frame(names)
    ends = [v for _, *pair in spans for v in pair] + [centre.x]
    margin = (max(ends) - min(ends)) * 0.08 or abs(centre.x) or 1.0
    axis = Axis(min(ends) - margin, max(ends) + margin, left, width - RIGHT)
    drawn = _scenery(axis, names, (category_label, value_label), width, height, side)
    for row, (name, *pair) in enumerate(spans):
        y = TOP + row * side + side * 0.14
        for kind, word, value in ((LOWER, "low", pair[0]), (UPPER, "high", pair[1])):
            begin, end = sorted((axis.place(value), axis.place(centre.x)))
            drawn.append(_bar(color(kind), begin, end, y, side * 0.72, f"{name}, {word} end: {short(value)}"))
            outward = value >= centre.x
            place = axis.place(value) + (5 if outward else -5)
            if side >= 11 and value != centre.x:
                anchor = "start" if outward else "end"
                drawn.append(label(place, TOP + row * side + side / 2 + 4, short(value), anchor, "note"))
    drawn += marked([(axis.place(centre.x), centre.label)], left, width, TOP - 4, height - BOTTOM)
    legend = [(color(LOWER), "at the low end of the input"), (color(UPPER), "at its high end")]
    return Picture(Markup("").join(drawn), width, height, f"{value_label} by {category_label}", legend)


def _frame(categories: Sequence[str]) -> tuple[float, float, int]:
    """Left margin, height of a row, height of the picture."""
    left = 30 + min(230.0, max(40.0, max(len(c) for c in categories) * CHARACTER))
    side = min(30.0, max(5.0, 600 / len(categories)))
    return left, side, round(len(categories) * side) + TOP + BOTTOM


def _scenery(
    axis: Axis, categories: Sequence[str], labels: tuple[str, str], width: int, height: int, side: float
) -> list[Markup]:
    """Grid, numbers, names of rows (as many as fit) and of axes."""
    out: list[Markup] = []
    for value in axis.ticks(8):
        x = axis.place(value)
        out += [upright("grid", x, TOP, height - BOTTOM), label(x, height - BOTTOM + 16, short(value), MIDDLE)]
    for row in range(0, len(categories), -(-13 // max(1, round(side)))):
        out.append(label(axis.begin - 7, TOP + row * side + side / 2 + 4, cut(categories[row], axis.begin - 30), "end"))
    out.append(label((axis.begin + axis.end) / 2, height - 6, labels[1], MIDDLE))
    out.append(turned_label((TOP + height - BOTTOM) / 2, labels[0]))
    return out


def _bar(kind: str, begin: float, end: float, y: float, high: float, told: str) -> Markup:
    template = '<rect class="bar {}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>'
    return tag(template, kind, float(begin), float(y), float(max(0.0, end - begin)), float(high), told)
