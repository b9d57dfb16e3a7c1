"""What all charts share: escaped tags, a finished picture with its legend, numbers and labels that fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from markupsafe import Markup, escape

COLORS = 8  # classes s0 .. s7; a ninth series begins again
CHARACTER = 6.6  # widest mean advance of a character at 12 px in the usual system fonts
MARGIN, LINE = 16, 18  # around a picture in a file of its own, and a line of its legend
MIDDLE, END = "middle", "end"


@dataclass(frozen=True)
class Picture:
    """A drawn chart: SVG `body` in a frame of `width` x `height`, and (class, name) of what its legend explains.

    Jinja and markupsafe take it as markup (`__html__`), `str` gives the same.
    """

    body: Markup
    width: int
    height: int
    title: str
    legend: Sequence[tuple[str, str]] = ()

    def __html__(self) -> str:
        if not self.body:
            return '<p class="empty">Nothing to draw yet.</p>'
        keys = [tag('<span class="key"><i class="k {}"></i>{}</span>', c, name) for c, name in self.legend]
        head = tag('<div class="legend">{}</div>', Markup("").join(keys)) if keys else Markup("")
        opening = tag('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">', self.width, self.height, self.title)
        return head + opening + self.body + Markup("</svg>")

    def __str__(self) -> str:
        return str(self.__html__())

    def to_svg(self, heading: str = "") -> str:
        """A whole SVG file: a card with heading, legend and colours for light and dark, as a README shows it."""
        parts, y = [], MARGIN + (24 if heading else 0)
        if heading:
            parts.append(tag('<text class="heading" x="{}" y="{}">{}</text>', MARGIN, MARGIN + 12, heading))
        x = MARGIN
        for kind, name in self.legend:
            wide = 22 + 18 + round(len(name) * CHARACTER)
            if x > MARGIN and x + wide > self.width + MARGIN:
                x, y = MARGIN, y + LINE
            parts.append(tag('<rect class="k {}" x="{}" y="{}" width="14" height="8" rx="2"/>', kind, x, y + 3))
            parts.append(tag('<text x="{}" y="{}">{}</text>', x + 20, y + 11, name))
            x += wide
        y += LINE + 6 if self.legend else 0
        wide, high = self.width + 2 * MARGIN, y + self.height + MARGIN
        frame = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img">'
        style = tag("<style>{}</style>", stylesheet())
        card = tag('<rect class="sheet" x="0.5" y="0.5" width="{}" height="{}" rx="10"/>', wide - 1, high - 1)
        drawn = tag('<g transform="translate({} {})">{}</g>', MARGIN, y, self.body)
        title = tag("<title>{}</title>", heading or self.title)
        return str(tag(frame, wide, high) + title + style + card + Markup("").join(parts) + drawn + Markup("</svg>\n"))


EMPTY = Picture(Markup(""), 0, 0, "")


@cache
def stylesheet() -> Markup:
    """Colours and text of charts in both themes; a page puts it into its own <style>. Holds nothing to escape."""
    return Markup(files("moesaic.charts").joinpath("style.css").read_text(encoding="utf-8"))


def tag(template: str, *values: object) -> Markup:
    """Fill `{}` in `template`, escaping text and rounding coordinates to what can be seen."""
    return Markup(template.format(*(f"{v:.5g}" if isinstance(v, float) else _escaped(v) for v in values)))


def _escaped(value: object) -> Markup:
    """Markup as it is; text as text, a control character (which XML cannot hold) as a space."""
    if isinstance(value, str) and not isinstance(value, Markup):
        value = "".join(c if c.isprintable() else " " for c in value)
    return escape(value)


def label(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> Markup:
    """Text in the picture; `anchor` is start, middle or end, `kind` a class of the style sheet."""
    return tag('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>', kind, float(x), float(y), anchor, words)


def turned_label(y: float, words: str) -> Markup:
    """The name of an upright axis, at the left edge, centred on `y`."""
    return tag('<text transform="translate(12 {}) rotate(-90)" text-anchor="middle">{}</text>', float(y), words)


def upright(kind: str, x: float, top: float, bottom: float) -> Markup:
    """A vertical line."""
    return tag('<path class="{}" d="M{} {}V{}"/>', kind, float(x), float(top), float(bottom))


def level(kind: str, left: float, right: float, y: float) -> Markup:
    """A horizontal line."""
    return tag('<path class="{}" d="M{} {}H{}"/>', kind, float(left), float(y), float(right))


def marked(marks: Sequence[tuple[float, str]], begin: float, end: float, top: float, bottom: float) -> list[Markup]:
    """Named vertical lines at coordinates: a name stands right of its line, or left where it would meet another."""
    out, taken = [], begin
    ordered = sorted(marks)
    for i, (x, name) in enumerate(ordered):
        wide = 8 + len(name) * CHARACTER
        following = ordered[i + 1][0] if i + 1 < len(ordered) else end
        left = x + wide > following and (x - wide > taken or x + wide > end)
        taken = x if left else x + wide
        out.append(upright("mark", x, top, bottom))
        out.append(label(x + (-4 if left else 4), top - 6, name, END if left else "start", "note"))
    return out


def color(index: int) -> str:
    """The class of series `index`."""
    return f"s{index % COLORS}"


def cut(words: str, width: float) -> str:
    """`words` if they fit into `width` units of the picture, else their beginning."""
    room = max(1, int(width / CHARACTER))
    return words if len(words) <= room else words[: room - 1] + "…"


def short(value: float) -> str:
    """A number as on an axis: 1.5M, 20k, 0.25, 0.0021, 3e-4."""
    size = abs(value)
    if size >= 0.9995e15:
        return f"{value:.3g}".replace("e+", "e")
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size >= scale * 0.9995:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}" if size >= 0.001 or value == 0 else f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")
