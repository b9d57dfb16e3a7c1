"""Charts are well-formed, stay inside their frame, escape what they are told and stay small."""

import math
import re
from itertools import accumulate
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.charts import (
    EMPTY,
    Mark,
    Picture,
    Series,
    Span,
    bar_chart,
    heat_map,
    line_chart,
    short,
    smooth,
    thin,
    timeline_chart,
    tornado_chart,
)
from moesaic.charts.axis import axis_of, ticks
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
    assert [short(v) for v in (0, 0.25, 0.0021, 3e-4, 999, 1500, 2e6, 3.1e12)] == [
        "0", "0.25", "0.0021", "3e-4", "999", "1.5k", "2M", "3.1T",
    ]  # fmt: skip
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert len(thin([(float(i), 1.0) for i in range(1000)], 100)) == 100
    assert smooth([(float(i), 7.0) for i in range(9)])[0][1] == pytest.approx(7.0)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1e5), (3e-7, 2.0), (0.9, 95.0), (1.0, 1e30), (1.05, 106.0)])
def test_a_wide_range_has_a_logarithmic_axis_with_round_ticks(low: float, high: float) -> None:
    axis = axis_of([low, high], 0, 100, log=True)
    assert axis.log is (high / low > 100)
    values = axis.ticks()
    assert 2 <= len(values) <= 12
    assert all(axis.low <= v <= axis.high for v in values)
    if axis.log:
        assert axis.place(math.sqrt(axis.low * axis.high)) == pytest.approx(50)
        assert all(f"{v:.6e}"[0] in "125" and set(f"{v:.6e}"[2:8]) == {"0"} for v in values)


@pytest.mark.parametrize("values", [[0.0, 1e5], [-1.0, 1e5], [1.0, 100.0]])
def test_an_axis_is_even_where_a_logarithm_cannot_be_or_does_not_help(values: list[float]) -> None:
    assert not axis_of(values, 0, 100, log=True).log


BAR = re.compile(r'<rect class="bar s\d" x="([^"]*)" y="[^"]*" width="([^"]*)"')
KINDS = ["forward", "backward", "<i>", "idle"]
coordinate = st.floats(-1e12, 1e12) | st.just(math.nan) | st.just(math.inf)
positive = st.floats(0, 1e9) | st.just(math.nan)


@given(
    st.dictionaries(st.text(max_size=5), st.lists(st.tuples(coordinate, coordinate), max_size=8), max_size=4),
    st.booleans(),
    st.lists(st.tuples(coordinate, st.text(max_size=5)), max_size=2),
)
def test_curves_and_points_lie_in_their_frame(
    data: dict[str, list[tuple[float, float]]], alone: bool, marks: list[tuple[float, str]]
) -> None:
    series = [Series(name, points, i, alone=alone) for i, (name, points) in enumerate(data.items())]
    assert_inside(line_chart(series, "x", "y", log=True, marks=[Mark(*m) for m in marks]))


@given(
    st.dictionaries(st.text(max_size=5), st.dictionaries(st.integers(0, 9), positive, max_size=8), max_size=4),
    st.lists(st.text(max_size=40), min_size=1, max_size=60),
)
def test_bars_lie_in_their_frame(data: dict[str, dict[int, float]], categories: list[str]) -> None:
    assert_inside(bar_chart(data, categories, "part", "GB", marks=[Mark(80.0, "capacity")]))


@given(
    st.dictionaries(st.integers(0, 9), coordinate, max_size=8),
    st.dictionaries(st.integers(0, 9), coordinate, max_size=8),
    coordinate,
)
def test_tornados_lie_in_their_frame(low: dict[int, float], high: dict[int, float], centre: float) -> None:
    assert_inside(tornado_chart(low, high, [f"input {i}" for i in range(10)], "input", "$", Mark(centre, "now")))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 12),
            st.floats(0, 100),
            st.floats(0, 100),
            st.sampled_from(KINDS),
        ),
        max_size=60,
    )
)
def test_timelines_lie_in_their_frame(spans: list[Span]) -> None:
    assert_inside(timeline_chart(spans, "time, s", "stage"))


def test_stacked_bars_are_as_long_as_their_values() -> None:
    chart = str(bar_chart({"a": {0: 10.0, 1: 20.0}, "b": {0: 30.0}}, ["p", "q"], "part", "GB"))
    bars = [
        (float(x), float(w))
        for x, w in re.findall(r'<rect class="bar s\d" x="([^"]*)" y="[^"]*" width="([^"]*)"', chart)
    ]
    (a, wide), (b, three), (c, two) = bars
    assert three == pytest.approx(3 * wide, rel=1e-3)
    assert two == pytest.approx(2 * wide, rel=1e-3)
    assert b == pytest.approx(a + wide, rel=1e-3)
    assert a == c
    assert "p, b: 30 of 40" in chart


def test_a_tornado_puts_the_widest_first_and_meets_at_its_centre() -> None:
    chart = str(
        tornado_chart({0: 9.0, 1: 4.0}, {0: 11.0, 1: 20.0}, ["narrow", "wide"], "input", "$", Mark(10.0, "now"))
    )
    assert chart.index(">wide<") < chart.index(">narrow<")
    bars = [
        (float(x), float(w))
        for x, w in re.findall(r'<rect class="bar s\d" x="([^"]*)" y="[^"]*" width="([^"]*)"', chart)
    ]
    assert bars[0][0] + bars[0][1] == pytest.approx(bars[1][0], abs=0.02)
    assert bars[1][1] / bars[0][1] == pytest.approx(10 / 6, rel=1e-3)


def test_what_cannot_be_told_apart_melts_and_what_can_stays_apart() -> None:
    def strokes(n: int) -> int:
        chart = str(timeline_chart([(0, float(i), i + 1.0, "forward") for i in range(n)], "s", "stage"))
        return len(re.findall(r"h[\d.]+", chart))

    assert strokes(10) == 10
    assert strokes(5000) == 1


def test_a_crowded_timeline_is_small_and_keeps_the_share_of_each_kind() -> None:
    spans: list[Span] = [
        (lane, i + (0.0 if kind == "forward" else 0.25), i + (0.25 if kind == "forward" else 1.0), kind)
        for lane in range(15)
        for i in range(300)
        for kind in ("forward", "backward")
    ]
    chart = str(timeline_chart(spans, "time, s", "stage"))
    assert len(spans) == 9000
    assert len(chart) < 130_000
    lengths = dict.fromkeys("01", 0.0)
    for kind, path in re.findall(r'<path class="lane s(\d)"[^>]* d="([^"]*)"', chart):
        lengths[kind] += sum(map(float, re.findall(r"h([\d.]+)", path)))
    assert lengths["0"] / (lengths["0"] + lengths["1"]) == pytest.approx(0.25, abs=0.03)
    assert "stage 3, forward: 300 x, 75 of 300" in chart


def test_idle_spans_leave_the_ground_and_known_kinds_keep_their_colour() -> None:
    chart = timeline_chart([(0, 0, 1, "all-to-all"), (0, 1, 2, "idle"), (1, 0, 2, "backward")], "s", "stage")
    assert list(chart.legend) == [("s1", "backward"), ("s3", "all-to-all"), ("idle", "idle")]
    assert "idle:" not in str(chart)


def test_names_of_close_marks_stand_on_both_sides() -> None:
    curve = [Series("a", [(0.0, 1.0), (100.0, 2.0)])]
    chart = str(
        line_chart(curve, "x", "y", width=1000, marks=[Mark(50, "Daly"), Mark(52, "Young"), Mark(100, "stop here")])
    )
    found = re.findall(r'<text class="note" x="([^"]*)" y="[^"]*" text-anchor="(\w+)">([^<]+)<', chart)
    assert [(anchor, name) for _, anchor, name in found] == [("end", "Daly"), ("start", "Young"), ("end", "stop here")]


def test_text_of_any_kind_stays_text() -> None:
    evil = "</text><script>&\"'"
    points = [Series(evil, [(0, 1)], alone=True, told=[evil]), Series("b", [(0, 1)])]
    pictures = [
        line_chart(points, evil, evil, marks=[Mark(1, evil)]),
        bar_chart({evil: {0: 1.0}, "b": {0: 1.0}}, [evil], evil, evil, marks=[Mark(1, evil)]),
        tornado_chart({0: 1.0}, {0: 3.0}, [evil], evil, evil, Mark(2, evil)),
        timeline_chart([(0, 0, 1, evil)], evil, evil, lanes=[evil]),
    ]  # fmt: skip
    for picture in pictures:
        assert_inside(picture)
        assert "<script>" not in str(picture)
        assert "<script>" not in picture.to_svg(evil)


def bars_of(chart: str) -> list[tuple[float, float]]:
    """Left end and length of each bar."""
    return [(float(x), float(width)) for x, width in BAR.findall(chart)]


def assert_inside(picture: Picture) -> None:
    """Well-formed on a page and as a file, and every coordinate within the frame."""
    if picture is EMPTY:
        return
    page = str(picture)
    root = ElementTree.fromstring(page[page.index("<svg") :])
    width, height = picture.width + 0.1, picture.height + 0.1
    for node in root.iter():
        x, y = (float(node.get(k) or node.get(f"c{k}") or 0) for k in "xy")
        assert 0 <= x <= width
        assert 0 <= y <= height
        assert x + float(node.get("width") or 0) <= width
        assert float(node.get("width") or 0) >= 0
        for pair in (node.get("points") or "").split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height
        if (node.get("d") or "").startswith("M0 "):
            moves = [float(v) for v in re.findall(r"[mh](-?[\d.]+)", node.get("d") or "")]
            assert all(0 <= at <= width for at in accumulate(moves))
    ElementTree.fromstring(picture.to_svg("heading"))
