"""Charts are well-formed, stay inside their frame, escape what they are told and stay small."""

import re

import pytest

from moesaic.charts import EMPTY, Series, heat_map, line_chart, short, smooth, thin
from moesaic.charts.axis import ticks
from moesaic.charts.lines import LEFT


def test_curves_stay_inside_their_frame_and_rise_upwards() -> None:
    chart = str(line_chart([Series("a", [(0, -5.0), (1, 0.0), (2, 1e6)])], "x", "y", width=500, height=200))
    (points,) = re.findall(r'points="([^"]*)"', chart)
    places = [tuple(map(float, p.split(","))) for p in points.split()]
    assert all(LEFT <= x <= 500 and 0 <= y <= 200 for x, y in places)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)


@pytest.mark.parametrize("points", [[], [(1.0, 2.0)], [(0.0, 3.0), (1.0, 3.0)], [(0.0, float("nan"))]])
def test_charts_survive_little_data(points: list[tuple[float, float]]) -> None:
    line_chart([Series("a", points)], "x", "y")
    assert heat_map([], "x") == EMPTY


def test_labels_are_escaped() -> None:
    assert "<b>" not in str(line_chart([Series("<b>", [(0, 1)]), Series("c", [(0, 1)])], "<b>", "y"))


def test_helpers_of_charts() -> None:
    assert [short(v) for v in (0, 0.25, 3e-4, 999, 1500, 2e6, 3.1e12)] == [
        "0", "0.25", "3e-4", "999", "1.5k", "2M", "3.1T",
    ]  # fmt: skip
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert len(thin([(float(i), 1.0) for i in range(1000)], 100)) == 100
    assert smooth([(float(i), 7.0) for i in range(9)])[0][1] == pytest.approx(7.0)
