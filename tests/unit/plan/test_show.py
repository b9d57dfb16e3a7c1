"""A sheet on the terminal: lines that fit, columns that align, nothing lost or broken; and as JSON."""

import json
import re
from pathlib import Path

import pytest
from sample_sheet import EVIL, sheet

from moesaic.commands.plan.show import MOST_ROWS, show
from moesaic.errors import PlanError
from moesaic.plan.sheet import Interval, Sheet


def printed(capsys: pytest.CaptureFixture[str], made: Sheet, **options: bool) -> list[str]:
    show(made, **options)
    return capsys.readouterr().out.splitlines()


@pytest.fixture(params=[80, 100, 160])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


@pytest.mark.parametrize("explain", [False, True])
def test_lines_fit_and_no_word_or_number_is_broken(
    capsys: pytest.CaptureFixture[str], width: int, explain: bool
) -> None:
    lines = printed(capsys, sheet(), explain=explain)
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)
    together = "\n".join(lines)
    for whole in ("selective", "interleave", "66,012,345,678", "54.1", "26 to 33", "1,832,612,345,856", EVIL):
        assert whole in together
    assert "…" not in together


def test_numbers_of_a_section_and_of_a_column_align(capsys: pytest.CaptureFixture[str], width: int) -> None:
    lines = printed(capsys, sheet())
    figures = lines[: lines.index("Memory by stage")]
    ends = {line.index(n) + len(n) for line in figures for n in ("29.41", "34.8", "28.57") if n in line}
    assert len(ends) == 1
    rows = [found for line in lines if (found := re.match(r" *\d+ +\d +28\.6", line))]
    assert len(rows) == 15
    assert len({found.end() for found in rows}) == 1


def test_columns_without_room_follow_below_with_the_first_repeated(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = printed(capsys, sheet())
    assert sum(line.startswith("tp8 pp15 ep1 dp208") for line in lines) >= 2
    assert any("the fastest of those" in line for line in lines)


def test_words_give_way_so_that_columns_stay_beside_each_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    made = Sheet("t")
    long = "words that could take a whole line for themselves if they were let"
    made.table("rows", "rows", [{"first": long, "second": long, "number_of_bytes": 123_456_789_012}])
    lines = printed(capsys, made)
    assert sum("first" in line for line in lines) == 1
    (row,) = [line for line in lines if "123,456,789,012" in line]
    assert row.count("words that could") == 2
    assert 76 <= max(map(len, lines)) <= 80


def test_a_table_that_is_piped_stays_in_one_piece(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = printed(capsys, sheet())
    assert sum(line.startswith("tp8 pp15 ep1 dp208") for line in lines) == 1
    (row,) = [line for line in lines if line.startswith("tp8 pp15 ep1 dp208")]
    assert "29 (26 to 33)" in row
    assert "54.1" in row
    note = lines.index(next(line for line in lines if line.startswith("note: 35")))
    assert all(len(line) <= 100 for line in lines[note:])
    assert lines[note + 1].startswith("      ")


def test_long_tables_say_what_they_leave_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = printed(capsys, sheet())
    assert sum(line.startswith("tp8 pp15") for line in lines) == MOST_ROWS
    assert "  ... 60 more rows, --json shows all" in lines
    assert "  none" in lines


def test_explain_gives_formula_and_inputs(capsys: pytest.CaptureFixture[str], width: int) -> None:
    plain, told = printed(capsys, sheet()), printed(capsys, sheet(), explain=True)
    assert not any("(p - 1)" in line for line in plain)
    at = next(i for i, line in enumerate(told) if "28.57 %" in line)
    assert told[at + 1 : at + 3] == ["      = (p - 1) / (m + p - 1)", "        with p = 15, m = 35"]


def test_markup_and_control_characters_of_a_name_are_only_text(capsys: pytest.CaptureFixture[str]) -> None:
    made = Sheet("[bold]x[/] :smile: \x1b[2J")
    made.add("[red]s", "k", "[b]label", "a\x1b[2Jb\nc", "", "[i]f[/]")
    made.table("t", "[u]t", [{"[k]_s": "[link=x]y"}])
    out = "\n".join(printed(capsys, made, explain=True))
    for whole in ("[bold]x[/] :smile:  [2J", "[red]s", "[b]label", "= [i]f[/]", "[u]t", "[link=x]y", "a [2Jb c"):
        assert whole in out
    assert "\x1b" not in out


def test_rows_of_different_shape_and_without_columns_are_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    made = Sheet("t")
    made.table("a", "A", [{"x": 1}, {"y": "why"}])
    made.table("b", "B", [{}])
    lines = printed(capsys, made)
    words = [line.split() for line in lines]
    assert ["x", "y"] in words
    assert ["-", "why"] in words
    assert lines[-1] == "  none"


def test_json_is_json_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    show(sheet(), as_json=True, html=tmp_path / "page.html")
    out = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(word))
    assert out["slope"] is None
    assert len(out["layouts"]) == 160
    assert (tmp_path / "page.html").exists()


def test_a_page_that_cannot_be_written_is_an_error_before_anything_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match=r"cannot be written: .*; name another file"):
        show(sheet(), html=tmp_path / "none" / "page.html")
    assert capsys.readouterr().out == ""


def test_an_interval_shows_its_middle_with_its_ends(capsys: pytest.CaptureFixture[str]) -> None:
    made = Sheet("t")
    made.add("s", "a_s", "a", Interval(1.0, 2000.0, 3000.5), "s", "")
    assert "  a  2,000 s  1 to 3,000" in printed(capsys, made)


def test_parts_that_are_zero_are_told_when_asked_for_and_in_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    made = Sheet("t")
    made.add("Memory", "gathered_gb", "gathered layers", 0.0, "GB", "two layers")
    made.add("Memory", "idle_devices", "devices left over", 0, "", "asked - used")
    said = "\n".join(printed(capsys, made))
    assert "gathered layers" not in said
    assert "devices left over" in said  # a count of none is an answer
    assert "gathered layers" in "\n".join(printed(capsys, made, explain=True))
    assert made.to_json()["gathered_gb"] == 0


def test_short_words_stand_in_the_column_of_numbers_and_first_tables_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    made = Sheet("t")
    made.add("Layout", "world_devices", "devices", 24_960, "", "")
    made.add("Layout", "recompute", "recomputation", "full", "", "")
    made.table("best", "What to take", [{"aim": "days"}], first=True)
    lines = printed(capsys, made)
    number, word = (next(line for line in lines if label in line) for label in ("devices", "recomputation"))
    assert len(number) == len(word)
    assert lines.index("What to take") < lines.index("Layout")
