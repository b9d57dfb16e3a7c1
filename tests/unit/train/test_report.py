"""The report is one whole file, whatever the run has got to, and tells the truth of its numbers."""

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from synthetic import EXPERTS, LAYERS, recipe, write_run

from moesaic.errors import CheckpointError
from moesaic.train.metrics import read_metrics
from moesaic.train.report import forecast_against_actual, training_charts, write_report

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Balanced(HTMLParser):
    """Fails where a tag closes another than the one that is open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(page: str) -> None:
    parser = Balanced()
    parser.feed(page)
    assert not parser.open
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)
    assert not re.search(r"<script|<link|src=|https?://|@import|url[(]", page)


def test_a_whole_run_is_told_in_one_file(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    page = write_report(run).read_text(encoding="utf-8")
    check(page)
    assert page.count("<title>") == 1 + LAYERS * EXPERTS
    assert recipe().system_hash() in page
    for told in (
        "CPU with AMX",
        "before extend",
        "trained to 128",
        "PSF-2.0",
        "it was never completed",
        "kept for good",
    ):
        assert told in page
    assert "I am fine &lt;3 &amp; you?" in page
    assert len(page) < 1_000_000


def test_text_of_a_model_cannot_become_markup(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    sample = '{"event": "sample", "stage": "<b>","at_step": 1, "prompt": "p", "reply": "<script>x</script>"}\n'
    (run / "metrics.jsonl").write_text(sample)
    check(write_report(run).read_text(encoding="utf-8"))


@pytest.mark.parametrize("kept", [{"recipe.toml"}, {"metrics.jsonl"}, {"recipe.toml", "forecast.json"}])
def test_a_run_that_has_just_begun_has_a_report(tmp_path: Path, kept: set[str]) -> None:
    run = write_run(tmp_path / "run")
    for path in run.iterdir():
        if path.is_file() and path.name not in kept:
            path.unlink()
    check(write_report(run).read_text(encoding="utf-8"))


def test_after_one_step_there_is_a_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    first = (run / "metrics.jsonl").read_text().split("\n")[0]
    (run / "metrics.jsonl").write_text(first + "\n" + first[:40])
    check(write_report(run).read_text(encoding="utf-8"))


def test_what_is_no_run_or_damaged_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a run folder"):
        write_report(tmp_path)
    run = write_run(tmp_path / "run")
    (run / "ledger.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"ledger\.json is damaged"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_actual_figures_are_those_of_the_steps(tmp_path: Path) -> None:
    steps = [s for s in read_metrics(write_run(tmp_path / "run") / "metrics.jsonl") if "event" not in s]
    rows = forecast_against_actual({"stages": [{"name": "later", "tokens": 5}]}, steps)
    assert [row["name"] for row in rows] == ["later", "pretrain", "extend", "instruct"]
    assert rows[0]["steps"] == 0
    assert rows[0]["rate"] is None
    assert sum(row["tokens"] for row in rows) == steps[-1]["tokens"]
    assert sum(row["skipped"] for row in rows) == 1
    assert sum(row["seconds"] for row in rows) == pytest.approx(sum(s["seconds"] for s in steps))


def test_held_out_points_stand_where_their_stage_ended(tmp_path: Path) -> None:
    lines = read_metrics(write_run(tmp_path / "run") / "metrics.jsonl")
    looks = [line for line in lines if line.get("event") == "evaluation"]
    chart = str(training_charts([line for line in lines if "event" not in line], looks)["held_out"])
    assert len(looks) == 3
    assert len(set(re.findall(r'cx="([^"]*)"', chart))) == 3
