"""Heat maps: how far from even each cell is."""

from collections.abc import Sequence

from markupsafe import Markup

from moesaic.charts.axis import ticks
from moesaic.charts.lines import BOTTOM, LEFT, RIGHT
from moesaic.charts.svg import EMPTY, MIDDLE, Picture, label, short, tag, turned_label


def heat_map(
    values: Sequence[Sequence[float]],
    column_label: str,
    row_label: str = "layer",
    *,
    width: int = 520,
    column_range: tuple[float, float] | None = None,
) -> Picture:
    """Cells `values[row][column]` around 1 = even, in classes `over` and `under`: stronger is further from even.

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
            parts.append(label(LEFT - 7, y + side / 2 + 4, str(row), "end"))
        for column, value in enumerate(line):
            kind, strength = ("over", (value - 1) / 1.5) if value > 1 else ("under", 1 - value)
            title = f"{row_label} {row}, {column_label} {column}: {value:.2f} x even"
            parts.append(
                tag(
                    '<rect class="{}" fill-opacity="{}" x="{}" y="{}" width="{}" height="{}">{}</rect>',
                    kind,
                    round(0.06 + 0.94 * min(1.0, strength), 2),
                    LEFT + column * cell,
                    y,
                    max(0.5, cell - (1.5 if columns <= 64 else 0)),
                    side - 1.5,
                    Markup("") if column_range else tag("<title>{}</title>", title),
                )
            )
    low, high = column_range or (0, columns - 1)
    for value in ticks(low, high, 8) if high > low else [low]:
        if column_range is None and value != int(value):
            continue
        x = LEFT + ((value - low) / ((high - low) or 1) * (columns - 1) + 0.5) * cell
        parts.append(label(x, height - BOTTOM + 16, short(value), MIDDLE))
    parts.append(label((LEFT + width) / 2, height - 6, column_label, MIDDLE))
    parts.append(turned_label((height - BOTTOM) / 2, row_label))
    return Picture(Markup("").join(parts), width, height, f"load by {row_label} and {column_label}")
