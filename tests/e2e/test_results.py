"""Figures in the pages are those of the kept results, and the results are of the recipes as they are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from moesaic import read_recipe

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["experts", "experts_longer"])
def test_the_tables_about_experts_are_those_of_the_benchmark(name: str) -> None:
    command = [sys.executable, "benchmarks/experts.py", "--show", "--name", name]
    table = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert table.count("\n") >= 4
    assert table in (ROOT / "docs" / "experts.md").read_text(encoding="utf-8")


def test_the_kept_dialogue_result_is_of_the_pocket_recipe_as_it_is() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "pocket_dialogue.json").read_text(encoding="utf-8"))
    assert result["recipe"] == read_recipe("pocket").system_hash()
    assert f"{result['bits_per_byte']:.3f}" in (ROOT / "README.md").read_text(encoding="utf-8")
