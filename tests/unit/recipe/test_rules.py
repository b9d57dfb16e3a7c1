"""Recipes: what is refused, by name and with a remedy; what the hashes cover; how values are overridden."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.errors import RecipeError
from moesaic.recipe import Layout, Model, Recipe, apply_override, check_recipe, read_recipe, recipe_files


@pytest.mark.parametrize("name", recipe_files())
def test_shipped_recipes_are_valid_and_called_like_their_file(name: str) -> None:
    assert read_recipe(name).name == name


def set_in(tree: dict[str, Any], path: str, value: object) -> None:
    *parents, last = path.split(".")
    node: Any = tree
    for part in parents:
        node = node[int(part)] if part.isdigit() else node.setdefault(part, {})
    node[last] = value


@pytest.mark.parametrize(
    ("path", "value", "where", "remedy"),
    [
        ("modle", {}, "modle", "unknown key; `moesaic recipe schema` lists"),
        ("model.n_head", 4, "model.n_head", "unknown key"),
        ("stages.0.optimizer", {"learning_rate": 1}, "stages.0.optimizer.learning_rate", "unknown key"),
        ("model.n_kv_heads", 3, "model", "change n_kv_heads to a divisor of 4"),
        ("model.head_dim", 15, "model", "use 16"),
        ("model.top_k", 17, "model", "lower top_k"),
        ("model.d_model", 60, "recipe", "use 64"),
        ("model.d_ff", 65, "recipe", "use 72"),
        ("model.n_layers", 0, "model.n_layers", "greater than 0"),
        ("model.n_layers", "four", "model.n_layers", "valid integer"),
        ("stages.0.batch", [{"tokens": 100}], "stages.0", "use 128"),
        ("stages.0.batch", [{"after_tokens": 5, "tokens": 64}], "stages.0", "first batch step"),
        ("stages.0.batch", [{"tokens": 64}, {"tokens": 128}], "stages.0", "must rise from step to step"),
        ("stages.0.weights", {"prose": 1.0}, "stages.0", "no weight for ['code', 'talk']"),
        ("stages.1.weights", {"prose": 1.0, "other": 1.0}, "stages.1", "does not read: ['other']"),
        ("stages.0.sources", ["novels"], "recipe", "not in data.sources: ['novels']"),
        ("stages.1.name", "pretrain", "recipe", "two stages share a name"),
        ("data.sources.1.name", "prose", "data", "two sources share a name"),
        ("data.sources.0.package", "x==1", "data.sources.0", "exactly one of path and package"),
        ("data.held_out", 0.5, "data.held_out", "less than 0.5"),
        ("layout.dp", 2, "recipe", "needs 2 devices, hardware.count = 1"),
    ],
)
def test_mistakes_are_named_with_what_to_change(
    plain: dict[str, Any], path: str, value: object, where: str, remedy: str
) -> None:
    set_in(plain, path, value)
    with pytest.raises(RecipeError) as error:
        check_recipe(plain, "my.toml")
    assert str(error.value).startswith(f"my.toml: {where}: ")
    assert remedy in str(error.value)
    assert str(error.value).count("\n") <= 1


MODEL = Model(vocab_size=512, d_model=64, n_layers=4, n_heads=4, head_dim=16, n_kv_heads=2, d_ff=64, n_experts=4)


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        ({"tp": 8}, {}, "tp = 8 does not divide n_heads = 4"),
        ({"tp": 3}, {"n_heads": 6, "n_kv_heads": 3}, "tp = 3 does not divide d_model = 64"),
        ({"tp": 4}, {"vocab_size": 510}, "tp = 4 does not divide vocab_size = 510"),
        ({"tp": 16}, {"d_ff": 24, "n_heads": 16}, "tp = 16 does not divide d_ff = 24"),
        ({"tp": 4}, {"dense_layers": (0,), "dense_d_ff": 66}, "tp = 4 does not divide dense_d_ff = 66"),
        ({"tp": 4, "etp": 4}, {"d_ff": 66}, "tp = 4 does not divide d_ff = 66"),
        ({"dp": 8, "ep": 8}, {}, "ep = 8 does not divide n_experts = 4"),
        ({"tp": 2}, {"n_heads": 6, "n_kv_heads": 3}, "n_kv_heads = 3 neither divides tp = 2"),
        ({"pp": 5}, {}, "pp = 5 stages for n_layers = 4"),
    ],
)
def test_every_rule_of_a_layout(layout: dict[str, int], changes: dict[str, int], message: str) -> None:
    problems = Layout(**layout).problems(MODEL.model_copy(update=changes))
    assert any(message in p for p in problems)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"cp": 3}, "does not divide stages.pretrain.seq_len"),
        ({"dp": 3}, "sequences of a pretrain batch"),
    ],
)
def test_rules_that_need_the_stages(recipe: Recipe, layout: dict[str, int], message: str) -> None:
    assert any(message in p for p in Layout(**layout).problems(recipe.model, recipe.stages))


def test_experts_fold_over_the_dense_ranks() -> None:
    with pytest.raises(ValueError, match="ep = 3 does not divide dp x cp x tp = 4"):
        Layout(dp=2, tp=2, ep=3)


@given(*[st.sampled_from([1, 2, 4])] * 4)
def test_expert_ranks_and_dense_ranks_are_the_same_ranks(pp: int, dp: int, cp: int, tp: int) -> None:
    for ep in (n for n in range(1, dp * cp * tp + 1) if (dp * cp * tp) % n == 0):
        layout = Layout(pp=pp, dp=dp, cp=cp, tp=tp, ep=ep)
        assert layout.pp * layout.ep * layout.edp == layout.world


def test_a_layout_that_fits_has_no_problems() -> None:
    layout = Layout(pp=2, dp=2, tp=4, ep=4)
    assert layout.problems(MODEL) == []  # two kv heads on four ranks are replicated


def test_one_device_fits_every_model(recipe: Recipe) -> None:
    assert Layout().problems(recipe.model, recipe.stages) == []


def test_system_hash_covers_what_decides_the_weights_and_nothing_else(recipe: Recipe) -> None:
    def changed(**update: object) -> Recipe:
        return recipe.model_copy(update=update)

    for other in (changed(seed=5), changed(model=recipe.model.model_copy(update={"top_k": 1}))):
        assert other.system_hash() != recipe.system_hash()
        assert other.full_hash() != recipe.full_hash()
    renamed = changed(name="other", about="words")
    assert (renamed.system_hash(), renamed.full_hash()) == (recipe.system_hash(), recipe.full_hash())
    moved = changed(layout=Layout(tp=2))
    assert moved.system_hash() == recipe.system_hash()
    assert moved.full_hash() != recipe.full_hash()


def test_hashes_are_the_same_in_every_process(recipe: Recipe, plain: dict[str, Any]) -> None:
    backwards = {key: plain[key] for key in reversed(plain)}
    assert check_recipe(backwards, "x").full_hash() == recipe.full_hash()


def test_overrides_reach_tables_lists_and_names(plain: dict[str, Any]) -> None:
    for text in (
        "model.n_layers=2",
        "stages.extend.tokens=1_000",
        "stages.0.optimizer.lr=1e-4",
        "stages.pretrain.sources=['prose']",
        "data.sources.talk.licence=MIT",
        "stages.instruct.batch.0.tokens=64",
        "model.tie_embeddings=false",
    ):
        apply_override(plain, text)
    assert plain["model"]["n_layers"] == 2
    assert plain["model"]["tie_embeddings"] is False
    assert plain["stages"][1]["tokens"] == 1000
    assert plain["stages"][0]["optimizer"] == {"lr": 1e-4}
    assert plain["stages"][0]["sources"] == ["prose"]
    assert plain["data"]["sources"][2]["licence"] == "MIT"
    assert plain["stages"][2]["batch"][0]["tokens"] == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.n_layers", "write it as key=value"),
        ("=3", "write it as key=value"),
        ("stages.warmup.tokens=3", "no 'warmup' among ['pretrain', 'extend', 'instruct']"),
        ("name.x=3", "not a table"),
        ("stages.9.tokens=3", "no '9' among"),
        ("name.x.y=3", "no table 'x'"),
    ],
)
def test_overrides_that_lead_nowhere(plain: dict[str, Any], text: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        apply_override(plain, text)
    assert message in str(error.value)


def test_files_that_are_not_recipes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no recipe file 'nowhere'; shipped recipes: .*pocket"):
        read_recipe("nowhere")
    for content in (b"a = ", b"\xff\xfe\x00"):
        (tmp_path / "x.toml").write_bytes(content)
        with pytest.raises(RecipeError, match=r"x\.toml: not valid TOML"):
            read_recipe(tmp_path / "x.toml")


def test_relative_paths_are_relative_to_the_recipe_file(tmp_path: Path, plain: dict[str, Any]) -> None:
    from moesaic.recipe.show import to_toml

    text = to_toml(check_recipe(plain, "x")).replace("/data/prose", "prose").replace("/data/code", "builtin:code")
    (tmp_path / "x.toml").write_text(text)
    found = {s.name: s.path for s in read_recipe(tmp_path / "x.toml").data.sources}
    assert found == {"prose": str(tmp_path / "prose"), "code": "builtin:code", "talk": "/data/talk.jsonl"}
