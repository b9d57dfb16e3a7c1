"""--data, --init and --set as functions of a recipe."""

import json
from pathlib import Path

import pytest

from moesaic.errors import RecipeError
from moesaic.recipe import Recipe, check_recipe
from moesaic.recipe.overrides import data_kind, with_data, with_init, with_values

CHATS = {
    "openai": {"messages": [{"role": "user", "content": "hi"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "hi"}]},
    "alpaca": {"instruction": "add", "output": "3"},
}


@pytest.fixture
def chats(tmp_path: Path) -> str:
    (tmp_path / "my chats.jsonl").write_text(json.dumps(CHATS["openai"]) + "\n")
    return str(tmp_path / "my chats.jsonl")


@pytest.fixture
def texts(tmp_path: Path) -> str:
    (tmp_path / "notes").mkdir()
    return str(tmp_path / "notes")


def read(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    return {s.name: s.sources for s in recipe.stages}


def test_chats_replace_chats_everywhere(recipe: Recipe, chats: str) -> None:
    mine = with_data(recipe, chats)
    assert read(mine) == {
        "pretrain": ("prose", "code", "my chats"),
        "extend": ("prose",),
        "instruct": ("my chats",),
    }
    source = mine.data.sources[-1]
    assert (source.kind, source.path, source.epochs) == ("chat", chats, 3)
    assert [s.name for s in mine.data.sources] == ["prose", "code", "my chats"]
    assert mine.stage("instruct").loss_on == "assistant"


def test_text_replaces_text_and_code_with_their_largest_number_of_epochs(recipe: Recipe, texts: str) -> None:
    mine = with_data(recipe, texts)
    assert read(mine) == {"pretrain": ("talk", "notes"), "extend": ("notes",), "instruct": ("talk",)}
    assert (mine.data.sources[-1].kind, mine.data.sources[-1].epochs) == ("text", 4)


def test_a_named_stage_reads_your_data_alone_and_the_others_keep_theirs(recipe: Recipe, texts: str) -> None:
    mine = with_data(recipe, texts, "pretrain")
    assert read(mine) == {"pretrain": ("notes",), "extend": ("prose",), "instruct": ("talk",)}
    assert {s.name for s in mine.data.sources} == {"prose", "talk", "notes"}


def test_weights_move_to_the_new_source(recipe: Recipe, texts: str) -> None:
    weighted = with_values(recipe, ["stages.pretrain.weights={prose=0.5, code=0.2, talk=0.3}"], Path())
    assert with_data(weighted, texts).stage("pretrain").weights == {"talk": 0.3, "notes": 0.7}
    assert with_data(weighted, texts, "pretrain").stage("pretrain").weights is None


def test_unknown_kinds_follow_the_stage_they_are_for(recipe: Recipe) -> None:
    assert with_data(recipe, "hf:me/chats", "instruct").data.sources[-1].kind == "chat"
    text = with_data(recipe, "hf:me/books").data.sources[-1]
    assert (text.name, text.kind, text.path) == ("books", "text", "hf:me/books")


def test_a_taken_name_gets_a_number(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "talk").mkdir()
    mine = with_data(recipe, str(tmp_path / "talk"))
    assert read(mine)["pretrain"] == ("talk", "talk-2")


def test_chats_without_a_stage_for_them(recipe: Recipe, chats: str) -> None:
    text_only = recipe.model_dump(mode="json", exclude_none=True)
    text_only["stages"] = text_only["stages"][1:2]
    text_only["data"]["sources"] = text_only["data"]["sources"][:1]
    with pytest.raises(RecipeError, match="holds chat, which no stage of 'tiny' reads; choose --stage"):
        with_data(check_recipe(text_only, "x"), chats)


@pytest.mark.parametrize("layout", CHATS)
def test_chats_are_known_by_their_keys(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n\n" + json.dumps(CHATS[layout]) + "\n")
    assert data_kind(str(path)) == "chat"
    path.write_text('{"text": "words"}\n')
    assert data_kind(str(path)) == "text"


@pytest.mark.parametrize("content", [b"", b"not json\n", b"\xff\xfe{}\n"])
def test_a_jsonl_file_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(RecipeError, match="first row is not JSON"):
        data_kind(str(tmp_path / "x.jsonl"))


def test_data_that_is_not_there(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match="there is no such file or folder"):
        with_data(recipe, "/nowhere/at/all")
    with pytest.raises(RecipeError, match="no stage 'warmup'"):
        with_data(recipe, "hf:me/x", "warmup")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    return folder


def test_init_starts_the_first_stage_with_weights_and_tokenizer(recipe: Recipe, model: Path) -> None:
    mine = with_init(recipe, model)
    assert [s.init for s in mine.stages] == [str(model), None, None]
    assert mine.data.tokenizer == str(model)
    assert mine.data.sources == recipe.data.sources


def test_init_for_a_stage_leaves_that_stage_and_its_sources(recipe: Recipe, model: Path) -> None:
    mine = with_init(recipe, model, "instruct")
    assert [(s.name, s.init) for s in mine.stages] == [("instruct", str(model))]
    assert [s.name for s in mine.data.sources] == ["talk"]


def test_init_needs_a_model_folder(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no config\.json there; give a model folder"):
        with_init(recipe, tmp_path)


def test_single_values_come_last_and_paths_are_relative_to_here(recipe: Recipe, chats: str, tmp_path: Path) -> None:
    mine = with_values(with_data(recipe, chats), ["data.sources.my chats.epochs=9", "data.tokenizer=tok"], tmp_path)
    assert mine.data.sources[-1].epochs == 9
    assert mine.data.tokenizer == str(tmp_path / "tok")
    assert with_values(recipe, [], tmp_path) == recipe
    with pytest.raises(RecipeError, match=r"--set: model\.n_layer: unknown key"):
        with_values(recipe, ["model.n_layer=3"], tmp_path)
