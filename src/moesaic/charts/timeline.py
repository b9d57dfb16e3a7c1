"""Who does what when: a lane a pipeline stage, spans coloured by what they are."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from markupsafe import Markup

from moesaic.charts.axis import Axis
from moesaic.charts.svg import EMPTY, MIDDLE, Picture, color, label, short, tag, turned_label

Span = tuple[int, float, float, str]  # lane, begin, end, kind
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 6, 40
IDLE = ("idle", "bubble")  # what is not drawn over the lane's own ground
KNOWN = {"forward": 0, "backward": 1, "weight-gradient": 2}  # colours that stay the same in every picture
SEPARATE = 3.0  # spans at least so wide stand apart from an equal neighbour
GAP = 0.6  # so far
VISIBLE = 0.4  # narrower ones share a cell, which takes the colour of the one that lasts longest


def timeline_chart(
    spans: Sequence[Span], x_label: str, y_label: str, *, lanes: Sequence[str] = (), width: int = 1080
) -> Picture:
    """Lanes from the earliest begin to the latest end; `lanes` name them, else they are counted from 0.

    Equal neighbours melt into one where the eye could not part them, and a kind in a lane is one path: thousands of
    spans take some ten kilobytes. What no span covers is idle.
    """
    known = [s for s in spans if math.isfinite(s[1]) and math.isfinite(s[2]) and s[2] > s[1] and s[0] >= 0]
    if not known:
        return EMPTY
    rows = max(max(lane for lane, *_ in known) + 1, len(lanes))
    side = min(26.0, max(5.0, 420 / rows))
    height = round(rows * side) + TOP + BOTTOM
    begin, end = min(s[1] for s in known), max(s[2] for s in known)
    axis = Axis(begin, end, LEFT, width - RIGHT)
    kinds = _colors(known)
    drawn: list[Markup] = []
    for lane in range(rows):
        y = TOP + (lane + 0.5) * side
        if lane % -(-13 // max(1, round(side))) == 0:
            drawn.append(label(LEFT - 7, y + 4, lanes[lane][:9] if lane < len(lanes) else str(lane), "end"))
        drawn.append(_stroke("idle", f"M{LEFT} {y:.5g}H{width - RIGHT}", side * 0.84, ""))
    for lane, group in groupby(sorted(known), key=lambda s: s[0]):
        name = lanes[lane] if lane < len(lanes) else f"{y_label} {lane}"
        drawn += _lane(list(group), name, axis, TOP + (lane + 0.5) * side, side * 0.84, kinds)
    for value in axis.ticks(10):
        drawn.append(label(axis.place(value), height - BOTTOM + 16, short(value), MIDDLE))
    drawn.append(label((LEFT + width) / 2, height - 6, x_label, MIDDLE))
    drawn.append(turned_label((height - BOTTOM + TOP) / 2, y_label))
    legend = [(kind, name) for name, kind in kinds.items()] + [("idle", "idle")]
    return Picture(Markup("").join(drawn), width, height, f"{y_label} over {x_label}", legend)


def _colors(spans: Sequence[Span]) -> dict[str, str]:
    """The class of each kind that is drawn: the well-known ones first, others as they appear."""
    present = dict.fromkeys(kind for *_, kind in spans if kind not in IDLE)
    others = (kind for kind in present if kind not in KNOWN)
    numbers = {k: n for k, n in KNOWN.items() if k in present} | {k: len(KNOWN) + i for i, k in enumerate(others)}
    return {kind: color(number) for kind, number in numbers.items()}


def _lane(
    spans: Sequence[Span], name: str, axis: Axis, y: float, high: float, kinds: Mapping[str, str]
) -> Iterator[Markup]:
    """A path a kind, with what it adds up to under the pointer."""
    cells = _cells([(axis.place(b), axis.place(e), k) for _, b, e, k in spans])
    for kind in kinds:
        own = [e - b for _, b, e, k in spans if k == kind]
        path = _path([(left, right) for left, right, k in cells if k == kind], y)
        if path:
            told = f"{name}, {kind}: {len(own)} x, {short(sum(own))} of {short(axis.high - axis.low)}"
            yield _stroke(kinds[kind], path, high, told)


def _path(cells: Sequence[tuple[float, float]], y: float) -> str:
    """Level strokes, each from where the last ended: the shortest way to write them, in tenths so that none drifts."""
    out, at = [f"M0 {y:.5g}"] if cells else [], 0
    for left, right in cells:
        begin, end = round(left * 10), max(round(right * 10), round(left * 10) + 1)
        out.append(f"m{(begin - at) / 10:g} 0h{(end - begin) / 10:g}")
        at = end
    return "".join(out)


def _cells(spans: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """The spans of a lane (in units of the picture, by their begin) as they are drawn."""
    crowds: list[tuple[float, float, dict[str, float]]] = []  # spans too narrow to see share one
    for left, right, kind in spans:
        if (
            crowds
            and right - left < VISIBLE
            and crowds[-1][1] - crowds[-1][0] < VISIBLE
            and _touch(crowds[-1][1], left)
        ):
            begin, end, widths = crowds[-1]
            widths[kind] = widths.get(kind, 0.0) + right - left
            crowds[-1] = (begin, max(end, right), widths)
        else:
            crowds.append((left, right, {kind: right - left}))
    cells: list[tuple[float, float, str]] = []
    narrow = False  # the last crowd that went into a cell
    for left, right, widths in crowds:
        kind = max(widths, key=widths.__getitem__)
        was_narrow, narrow = narrow, right - left < SEPARATE
        if cells and was_narrow and narrow and cells[-1][2] == kind and _touch(cells[-1][1], left):
            cells[-1] = (cells[-1][0], max(cells[-1][1], right), kind)
        else:
            cells.append((left, right, kind))
    return [(a, b - (GAP if b - a >= SEPARATE else 0.0), kind) for a, b, kind in cells]


def _touch(end: float, begin: float) -> bool:
    return begin - end < 0.05


def _stroke(kind: str, path: str, high: float, told: str) -> Markup:
    title = tag("<title>{}</title>", told) if told else Markup("")
    return tag('<path class="lane {}" stroke-width="{}" d="{}">{}</path>', kind, float(high), path, title)
