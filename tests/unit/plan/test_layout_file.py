"""plan search --out: what the search lists first and training can do is what train --layout reads."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moesaic.commands.options import recipe_from
from moesaic.commands.plan import plan_app
from moesaic.errors import PlanError
from moesaic.plan.layout_file import asked_layout, write_layout
from moesaic.plan.search_api import search_plan
from moesaic.recipe import Layout
from moesaic.recipe.layout_text import read_layout


def test_a_search_goes_straight_into_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "layout.toml"
    words = ["search", "pocket", "--hardware", "a100-80", "--gpus", "16", "--out", str(out), "--json"]
    found = CliRunner().invoke(plan_app, words)
    assert found.exit_code == 0
    assert f"layout: {out}" in found.stderr
    rows = json.loads(found.stdout)["top"]
    recipe = recipe_from("pocket", layout=str(out))
    chosen = read_layout(str(out))
    assert recipe.layout == chosen.layout
    assert recipe.hardware.count == recipe.layout.world
    listed = [asked_layout(row, 256) for row in rows]
    place = listed.index(chosen)
    for better in listed[:place]:
        assert better.layout.problems(recipe.model, recipe.stages)
    assert (f"holds row {place + 1} of" in found.stderr) == (place > 0)
    micro = {s.name: s.micro_batch for s in recipe.stages if s.seq_len == 256}
    assert set(micro.values()) == {chosen.micro_batch}
    told = capsys.readouterr().err
    for stage in recipe_from("pocket").stages:
        changed = stage.seq_len == 256 and stage.micro_batch != chosen.micro_batch
        assert (f"stages.{stage.name}.micro_batch = {chosen.micro_batch}" in told) == changed


def test_what_the_stages_do_not_take_yet_is_said(tmp_path: Path) -> None:
    sheet = search_plan("gpt4", "a100-80", 24960, batch="60M", top=1)
    notes = write_layout(sheet, tmp_path / "a.toml", "gpt4")
    assert len(notes) == 1
    assert "does not divide sequences of a pretrain batch" in notes[0]
    assert read_layout(str(tmp_path / "a.toml")).layout.dp == 78


def test_shapes_without_a_recipe_have_layouts_too(tmp_path: Path) -> None:
    sheet = search_plan("llama-3-8b", "h100", 64)
    assert write_layout(sheet, tmp_path / "a.toml", "llama-3-8b", reduce="bf16") == []
    assert read_layout(str(tmp_path / "a.toml")).layout.reduce == "bf16"


def test_chunks_are_an_interleaved_pipeline() -> None:
    row = {"pp": 4, "dp": 2, "cp": 1, "tp": 1, "ep": 1, "etp": 1, "zero": 1, "recompute": "full", "micro_batch": 2}
    assert asked_layout(row | {"chunks": 1}, 64).layout == Layout(pp=4, dp=2, recompute="full")
    interleaved = Layout(pp=4, dp=2, recompute="full", schedule="interleaved", chunks=3)
    assert asked_layout(row | {"chunks": 3}, 64).layout == interleaved


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    sheet = search_plan("pocket", "a100-80", 4)
    with pytest.raises(PlanError, match="cannot be written: No such file"):
        write_layout(sheet, tmp_path / "missing" / "a.toml", "pocket")
    mixed = search_plan("gpt4", "a100-80:16384,h100:8192", batch="60M")
    with pytest.raises(PlanError, match="give one generation"):
        write_layout(mixed, tmp_path / "a.toml", "gpt4")
