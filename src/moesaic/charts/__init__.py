"""Charts as inline SVG, drawn without a library and without scripts: curves, points, bars, timelines, heat maps.

Colours are CSS classes of `style.css`, to follow the reader's theme. A `Picture` goes into a page, where Jinja takes
it as it is, or becomes a file of its own (`Picture.to_svg`).
"""

from moesaic.charts.bars import bar_chart, tornado_chart
from moesaic.charts.heat import heat_map
from moesaic.charts.lines import Mark, Series, line_chart, smooth, thin
from moesaic.charts.svg import EMPTY, Picture, short, stylesheet
from moesaic.charts.timeline import Span, timeline_chart

__all__ = [
    "EMPTY",
    "Mark",
    "Picture",
    "Series",
    "Span",
    "bar_chart",
    "heat_map",
    "line_chart",
    "short",
    "smooth",
    "stylesheet",
    "thin",
    "timeline_chart",
    "tornado_chart",
]
