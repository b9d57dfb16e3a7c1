"""A recipe as text: TOML reads back equal, differences carry paths of --set, schema and page are complete."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.errors import RecipeError
from moesaic.recipe import Recipe, apply_override, check_recipe, read_recipe, recipe_files
from moesaic.recipe.docs import TARGET, main, render
from moesaic.recipe.show import diff, init, parts, schema, split_doc, to_toml

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBER = st.floats(min_value=1e-300, allow_infinity=False)


@pytest.mark.parametrize("name", recipe_files())
def test_toml_of_shipped_recipes_reads_back_equal(name: str, tmp_path: Path) -> None:
    recipe = read_recipe(name)
    (tmp_path / "again.toml").write_text(to_toml(recipe))
    assert read_recipe(tmp_path / "again.toml") == recipe


@given(
    TEXT,
    TEXT,
    st.integers(0, 2**62),
    NUMBER,
    st.dictionaries(TEXT, NUMBER, min_size=1, max_size=3),
    st.booleans(),
)
def test_toml_reads_back_equal(
    name: str, about: str, seed: int, lr: float, weights: dict[str, float], tie: bool
) -> None:
    sources = [{"name": n, "path": f"/{about}/{n}"} for n in weights]
    stage = {"name": name, "sources": list(weights), "weights": weights, "tokens": seed + 1, "seq_len": 8}
    stage |= {"batch": [{"tokens": 8}, {"after_tokens": 3, "tokens": 16}], "optimizer": {"lr": lr}}
    model = {"vocab_size": 9, "d_model": 8, "n_layers": 1, "n_heads": 1, "d_ff": 8, "tie_embeddings": tie}
    values = {"name": name, "about": about, "seed": seed, "model": model, "data": {"sources": sources}}
    recipe = check_recipe(values | {"stages": [stage]}, "x")
    assert check_recipe(tomllib.loads(to_toml(recipe)), "x") == recipe


def test_differences_go_by_the_paths_that_set_takes(recipe: Recipe, plain: dict[str, Any]) -> None:
    changes = ("model.n_layers=2", "stages.extend.tokens=8192", "data.sources.talk.epochs=1", "seed=7")
    for change in changes:
        apply_override(plain, change)
    found = diff(recipe, check_recipe(plain, "x"))
    assert {f"{d.path}={d.right}" for d in found} == set(changes)
    assert diff(recipe, recipe) == []


def test_differences_show_what_one_side_lacks_and_the_order(recipe: Recipe, plain: dict[str, Any]) -> None:
    plain["stages"] = [plain["stages"][2], plain["stages"][0]]
    found = {d.path: d for d in diff(recipe, check_recipe(plain, "x"))}
    assert found["stages"].right == ["instruct", "pretrain"]
    assert found["stages.extend.rope_theta"].right is None


def test_init_gives_the_shipped_text_with_its_comments() -> None:
    for name, path in recipe_files().items():
        assert init(name) == path.read_text()
    with pytest.raises(RecipeError, match=r"no shipped recipe 'mine' to start from; there are: .*pocket"):
        init("mine")


def test_schema_describes_every_field_in_full() -> None:
    found = schema()
    json.dumps(found)
    assert {"Recipe", *found["$defs"]} == {p.__name__ for p in parts()}
    for table in (found, *found["$defs"].values()):
        assert table["additionalProperties"] is False
        for field in table["properties"].values():
            assert "Change it when: " in field["description"]
    assert found["$defs"]["Stage"]["properties"]["tokens"]["description"].count("Unit: tokens.") == 1


@pytest.mark.parametrize("part", parts(), ids=lambda p: p.__name__)
def test_every_field_says_meaning_unit_and_when_to_change_it(part: type) -> None:
    for key, field in part.model_fields.items():  # type: ignore[attr-defined]
        assert all(split_doc(field.description or "", f"{part.__name__}.{key}"))


@pytest.mark.parametrize("text", ["", "meaning", "meaning | unit", "meaning | | when", "a | b | c | d"])
def test_an_incomplete_docstring_is_found(text: str) -> None:
    with pytest.raises(ValueError, match=r"X\.y: its docstring must read `meaning | unit"):
        split_doc(text, "X.y")


def test_the_page_is_not_stale(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert TARGET.read_text() == render(), "run `python -m moesaic.recipe.docs`"
    assert main(["--check"]) == 0
    monkeypatch.setattr("moesaic.recipe.docs.render", lambda: "changed")
    assert main(["--check"]) == 1
    assert "docs/recipe.md is stale; run" in capsys.readouterr().err
