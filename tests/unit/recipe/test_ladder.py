"""The ladder of shipped recipes: all pass the checks, and the largest one is the described system."""

import pytest

from moesaic.recipe import read_recipe, recipe_files

LADDER = ("pocket", "desk", "card", "node", "gpt4")
OTHERS = ("recover", "tune")  # what one does with a model from elsewhere


def test_the_ladder_is_complete() -> None:
    assert sorted(recipe_files()) == sorted(LADDER + OTHERS)


@pytest.mark.parametrize("name", LADDER)
def test_a_recipe_is_named_after_its_file_and_has_every_text_stage(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.name == name
    assert recipe.about
    assert [s.name for s in recipe.stages] == ["pretrain", "extend", "instruct"]
    assert recipe.stages[0].seq_len == recipe.model.context
    assert recipe.stages[1].seq_len == 4 * recipe.model.context
    assert recipe.stages[1].rope_theta is not None
    assert recipe.stages[2].loss_on == "assistant"
    assert all(s.licence != "unstated" for s in recipe.data.sources)


@pytest.mark.parametrize("name", LADDER)
def test_epochs_are_the_described_ones(name: str) -> None:
    for source in read_recipe(name).data.sources:
        assert source.epochs == {"text": 2, "code": 4}.get(source.kind, source.epochs)


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_recipes_start_from_an_imported_model(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.name == name
    assert recipe.stages[0].init is not None
    assert recipe.tokenizer == recipe.stages[0].init


@pytest.mark.parametrize("name", ["desk", "card"])
def test_what_starts_from_smollm2_has_its_shape(name: str) -> None:
    keep = ("vocab_size", "d_model", "n_layers", "n_heads", "head_dim", "n_kv_heads", "d_ff", "rope_theta")
    ours, smollm2 = read_recipe(name).model, read_recipe("tune").model
    assert {k: getattr(ours, k) for k in keep} == {k: getattr(smollm2, k) for k in keep}
    assert read_recipe(name).stages[0].init == f"runs/smollm2-{name}"


def test_every_step_up_the_ladder_is_larger() -> None:
    sizes = [read_recipe(name).model.parameters() for name in LADDER]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("name", ["desk", "card"])
def test_training_state_leaves_room_on_one_device(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.hardware.memory_gb is not None
    assert 16 * recipe.model.parameters() / 1e9 < 0.7 * recipe.hardware.memory_gb  # fp32 AdamW: 16 bytes each


def test_gpt4_trains_as_described() -> None:
    recipe = read_recipe("gpt4")
    pretrain, layout = recipe.stages[0], recipe.layout
    assert layout.world == recipe.hardware.count == 24_960
    assert pretrain.tokens == 13_000_000_000_000
    assert pretrain.batch_tokens(0) < pretrain.batch_tokens(10**11) < pretrain.batch_tokens(10**13)
    largest = pretrain.batch[-1].tokens
    assert abs(largest / 60e6 - 1) < 0.01
    per_expert = largest * recipe.model.top_k / recipe.model.n_experts
    assert round(per_expert / 1e6, 1) == 7.5
    micro_batches = largest // pretrain.seq_len // layout.dp // pretrain.micro_batch
    assert micro_batches == 35
    assert round((layout.pp - 1) / (micro_batches + layout.pp - 1), 3) == 0.286
