"""--layout: words and files become a Layout or one line that says what to change, and a recipe takes it whole."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.errors import RecipeError
from moesaic.recipe import Layout, Recipe, check_recipe
from moesaic.recipe.layout_text import AskedLayout, layout_to_toml, parse_layout, read_layout
from moesaic.recipe.overrides import with_layout


def test_words() -> None:
    assert parse_layout("tp=2, pp=2,ep=2,zero=0,schedule=zero_bubble") == Layout(
        tp=2, pp=2, ep=2, zero=0, schedule="zero_bubble"
    )
    assert parse_layout("dp=4,compile=true,reduce=bf16") == Layout(dp=4, compile=True, reduce="bf16")
    assert read_layout("tp=2,micro_batch=4") == AskedLayout(Layout(tp=2), 4)


def test_what_is_not_given_is_not_the_recipes(recipe: Recipe) -> None:
    wide = with_layout(recipe, "dp=2,tp=2,zero=0")
    assert with_layout(wide, "pp=2").layout == Layout(pp=2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tp", "'tp' is no key=value"),
        ("", "'' is no key=value"),
        ("tp=", "'tp=' is no key=value"),
        ("tp=2,,pp=2", "'' is no key=value"),
        ("tp=2,tp=4", "tp is given twice"),
        ("tpp=2", "unknown key 'tpp'; known: pp, dp"),
        ("tp=0", "tp = 0: Input should be greater than 0"),
        ("tp=two", "tp = 'two': Input should be a valid integer"),
        ("zero=2", "zero = 2: Input should be 0, 1 or 3"),
        ("schedule=gpipe", "schedule = 'gpipe'"),
        ("ep=3,tp=2", "ep = 3 does not divide dp x cp x tp = 2"),
        ("tp=4,etp=2", "use 1 or tp = 4"),
        ("tp=0,pp=0", "and 1 more"),
        ("tp=2,seq_len=64", "give both, or neither"),
        ("nowhere.toml", "nowhere.toml: it cannot be read: No such file"),
    ],
)
def test_mistakes_are_one_line(text: str, says: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_layout(text)
    assert says in str(error.value)
    assert str(error.value).startswith("--layout")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.toml", "[layout\n", "it is not TOML"),
        ("a.json", "{", "it is not JSON"),
        ("a.toml", "tp = 2\n", "there is no [layout] table"),
        ("a.json", "[1]", "there is no [layout] table"),
        ("a.json", '{"layout": "TP 8"}', "there is no [layout] table"),
        ("a.toml", "[layout]\nsequences = 2\n", "unknown key 'sequences'"),
        ("a.toml", b"\xff\xfe", "it is not TOML"),
    ],
)
def test_mistakes_in_files(tmp_path: Path, name: str, content: str | bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecipeError) as error:
        parse_layout(str(tmp_path / name))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


layouts = st.builds(
    Layout,
    pp=st.integers(1, 8),
    dp=st.integers(1, 8),
    cp=st.sampled_from([1, 2]),
    tp=st.sampled_from([1, 2, 4]),
    zero=st.sampled_from([0, 1, 3]),
    recompute=st.sampled_from(["none", "selective", "full"]),
    schedule=st.sampled_from(["1f1b", "interleaved", "zero_bubble"]),
    chunks=st.integers(1, 4),
    reduce=st.sampled_from(["fp32", "bf16"]),
    compile=st.booleans(),
)


@given(layouts, st.none() | st.integers(1, 64), st.none() | st.integers(1, 8192))
def test_a_file_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, layout: Layout, micro: int, seq: int
) -> None:
    asked = AskedLayout(layout, micro, seq if micro else None)
    path = tmp_path_factory.getbasetemp() / "layout.toml"
    path.write_text(layout_to_toml(asked, "two\nlines"))
    assert read_layout(str(path)) == asked


def test_json_and_the_recipe_of_a_run_are_files_too(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"layout": {"tp": 2}, "title": "found"}))
    assert parse_layout(str(tmp_path / "a.json")) == Layout(tp=2)
    (tmp_path / "layout").write_text("[layout]\npp = 2\n")
    assert parse_layout(str(tmp_path / "layout")) == Layout(pp=2)


def test_processes_on_this_machine_are_no_devices_but_elsewhere_they_are(recipe: Recipe) -> None:
    assert with_layout(recipe, "tp=2,dp=2").hardware.count == 4
    many = check_recipe(recipe.model_dump(mode="json") | {"hardware": {"count": 8}}, "test")
    assert with_layout(many, "dp=2").hardware.count == 8
    rented = check_recipe(recipe.model_dump(mode="json") | {"hardware": {"name": "H100", "count": 2}}, "test")
    assert with_layout(rented, "dp=2").layout.dp == 2
    with pytest.raises(RecipeError, match=r"needs 4 devices, hardware\.count = 2"):
        with_layout(rented, "dp=4")


def test_rules_of_the_model_are_checked(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match=r"^--layout pp=8: .*pp = 8 stages for n_layers = 4"):
        with_layout(recipe, "pp=8")


def test_micro_batches_go_to_stages_of_their_length(recipe: Recipe) -> None:
    longer = with_layout(recipe, "dp=1", ["stages.extend.seq_len=128"])
    got = with_layout(longer, "tp=2,micro_batch=2,seq_len=64")
    assert [s.micro_batch for s in got.stages] == [2, 8, 2]
    assert [s.micro_batch for s in with_layout(longer, "micro_batch=1").stages] == [1, 1, 1]
    with pytest.raises(RecipeError, match=r"seq_len = 32, .* have \[64, 128\]"):
        with_layout(longer, "micro_batch=1,seq_len=32")


def test_values_are_set_after_the_layout_and_checked_with_it(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match="dp = 8 does not divide sequences"):
        with_layout(recipe, "dp=8")
    batches = [f"stages.{s.name}.batch=[{{tokens=512}}]" for s in recipe.stages]
    got = with_layout(recipe, "dp=8", [*batches, "layout.zero=3"])
    assert (got.layout.dp, got.layout.zero) == (8, 3)


def test_a_layout_changes_no_weights(recipe: Recipe) -> None:
    assert with_layout(recipe, "tp=2,dp=2").system_hash() == recipe.system_hash()
