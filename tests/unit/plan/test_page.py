"""The page is one well-formed file that fetches nothing, runs nothing and lets no name become markup."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from sample_sheet import charts, sheet

from moesaic.charts import EMPTY
from moesaic.errors import PlanError
from moesaic.plan.page import page_of, range_of, write_page
from moesaic.plan.picture import picture_of, write_svg
from moesaic.plan.sheet import Chart, Interval, Sheet

VOID = {"meta", "br", "hr"}


class Page(HTMLParser):
    """Fails where a tag closes another than the one that is open; keeps tags and text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(content)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_a_page_is_whole_safe_and_alone() -> None:
    content = page_of(sheet())
    page = Page(content)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "base"}
    assert not any(key.startswith("on") or key in {"src", "href"} for _, attrs in page.tags for key in attrs)
    assert not re.search(r"https?://|@import|url\(", content)
    assert page.words.count("<script>alert('x')</script> & \"co\"") >= 8
    for svg in re.findall(r"<svg.*?</svg>", content, re.DOTALL):
        ElementTree.fromstring(svg)
    assert content.count("<svg") == 5
    assert len(content) < 250_000


def test_notes_come_first_and_formulas_stand_with_their_figure() -> None:
    words = Page(page_of(sheet())).words
    assert words.index("35 micro-batches cannot") < words.index("Parameters") < words.index("Memory by stage")
    assert words.index("time of a step") < words.index("m * t + (p - 1) * t / v") < words.index("29.41")
    assert "26.83 to 33.02" in words


def test_numbers_lean_right_and_rows_that_do_not_fit_are_dimmed() -> None:
    content = page_of(sheet())
    assert content.count('<tr class="off">') == 3
    assert '<th class="n">weights GB</th>' in content
    assert '<th class="n">total GB</th><th>fits</th>' in content
    assert '<td class="n">66,012,345,678</td>' in content


def test_an_empty_sheet_has_a_page() -> None:
    page = Page(page_of(Sheet("nothing")))
    assert "nothing" in page.words
    assert not {tag for tag, _ in page.tags} & {"table", "svg", "h2"}


def test_very_long_tables_say_what_they_leave_out() -> None:
    made = Sheet("t")
    made.table("rows", "rows", [{"i": i} for i in range(1234)])
    assert "234 more rows; --json shows all." in Page(page_of(made)).words


def test_the_file_is_the_page_and_replaces_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    write_page(sheet(), path)
    assert path.read_text(encoding="utf-8") == page_of(sheet())
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["none/page.html", ".", "", "nul\0.html"])
def test_a_file_that_cannot_be_is_a_short_error(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PlanError, match=r"cannot be written: .*; name another file$"):
        write_page(sheet(), Path(name))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("interval", [(1, 2, 3), (0, 0, 1), (5, 5, 5)])
def test_a_range_lies_on_its_scale_in_order(interval: tuple[float, float, float]) -> None:
    drawn = range_of(Interval(*interval))
    assert drawn is not None
    assert 0 <= drawn.begin <= drawn.middle <= drawn.end <= 100
    assert drawn.begin / drawn.end == pytest.approx(interval[0] / interval[2])


@pytest.mark.parametrize("interval", [(-1, 2, 3), (0, 0, 0), (1, 2, math.inf), (1, math.nan, 2), (3, 2, 1)])
def test_what_is_no_range_has_no_bar(interval: tuple[float, float, float]) -> None:
    assert range_of(Interval(*interval)) is None


@pytest.mark.parametrize("chart", charts(), ids=lambda c: c.kind)
def test_a_chart_alone_is_a_whole_file_for_both_themes(chart: Chart, tmp_path: Path) -> None:
    path = tmp_path / "chart.svg"
    write_svg(chart, path)
    content = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(content)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("width") == root.get("viewBox", "").split()[2]
    assert "prefers-color-scheme: dark" in content
    words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {chart.title, chart.x, chart.y} <= set(words)
    if chart.kind in ("lines", "points", "bars"):
        assert set(chart.series) <= set(words)


def test_nothing_to_draw_is_no_file(tmp_path: Path) -> None:
    hollow = Chart("hollow", "t", "lines", "x", "y", {"a": [(1.0, math.nan)]})
    assert picture_of(hollow) is EMPTY
    with pytest.raises(PlanError, match="hollow has nothing to draw"):
        write_svg(hollow, tmp_path / "x.svg")
    assert not list(tmp_path.iterdir())


def test_a_tornado_needs_its_centre() -> None:
    with pytest.raises(ValueError, match="centre"):
        picture_of(Chart("t", "t", "tornado", "x", "y", {"low": [(0, 1)], "high": [(0, 2)]}, categories=["a"]))
