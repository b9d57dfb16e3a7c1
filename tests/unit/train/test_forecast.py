"""The forecast counts what the run will do: each step of the ramp, and the end of the data."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic import recipe

import tiny
from moesaic.model import Transformer, initialise
from moesaic.parallel.engine import Engine
from moesaic.plan.flops import training_flops
from moesaic.plan.forecast import batch_ramp, forecast
from moesaic.plan.shape import shape_of
from moesaic.recipe import BatchStep, Recipe, Stage
from moesaic.train.machine import Machine
from moesaic.train.measure import expected


def stage_of(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(s for s in result["stages"] if s["name"] == name)


@given(
    tokens=st.integers(1, 5000),
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    starts=st.sets(st.integers(1, 4000), min_size=3, max_size=3),
)
def test_steps_are_those_of_a_run_that_counts_them(tokens: int, sizes: list[int], starts: set[int]) -> None:
    ramp = [BatchStep(after_tokens=a, tokens=8 * n) for a, n in zip([0, *sorted(starts)], sizes, strict=False)]
    stage = Stage(name="s", sources=("x",), tokens=tokens, seq_len=8, batch=tuple(ramp))
    done = steps = 0
    while done < tokens:
        done, steps = done + stage.batch_tokens(done), steps + 1
    assert sum(n for _, n in batch_ramp(stage, tokens)) == steps


def test_numbers_follow_from_the_recipe_and_the_rates() -> None:
    ours = recipe()
    result = forecast(
        ours,
        {("pretrain", 4096): 500.0, ("pretrain", 8192): 1000.0, ("extend", 8192): 500.0, ("instruct", 8192): 500.0},
    )
    pretrain = stage_of(result, "pretrain")
    begun = -(-500_000 // 4096)  # steps before the ramp
    rest = -(-(2_000_000 - begun * 4096) // 8192)
    assert pretrain["steps"] == begun + rest
    assert pretrain["seconds"] == begun * 4096 / 500 + rest * 8192 / 1000
    assert pretrain["flops"] == 6 * ours.model.active_parameters * 2_000_000
    # The scores add to the products, and the table of embeddings is looked up, not multiplied, where the head is it.
    assert pretrain["flops_with_attention"] == training_flops(shape_of(ours.model, "ours"), 128) * 2_000_000
    assert result["total"]["flops_with_attention"] == sum(s["flops_with_attention"] for s in result["stages"])
    assert pretrain["batch_tokens"] == [4096, 8192]
    assert pretrain["batch_sequences"] == [32, 64]
    assert pretrain["tokens_per_expert"] == 8192 * 2 / 16
    assert pretrain["epochs"] is None
    assert result["total"]["tokens"] == 3_000_000
    # Whole steps: the last batch of a stage may be longer than what is left of its budget.
    assert result["total"]["seconds"] == pretrain["seconds"] + -(-400_000 // 8192) * 8192 / 500 + (
        -(-600_000 // 8192) * 8192 / 500
    )
    assert result["checkpoint_bytes"] == 12 * result["parameters"]["total"]
    assert result["memory_bytes"] == 16 * result["parameters"]["total"]


def test_a_stage_without_a_rate_has_no_time() -> None:
    result = forecast(recipe(), {("pretrain", 4096): 1000.0, ("pretrain", 8192): 1000.0})
    assert stage_of(result, "extend")["seconds"] is None
    assert result["total"]["seconds"] is None


def test_a_stage_ends_when_its_sources_are_spent_and_no_cap_is_passed() -> None:
    held = {"prose": 500_000, "stdlib": 200_000, "dialogue": 400_000}
    result = forecast(recipe(), {}, held)
    # Epochs 2, 4, 2: 1.0 M, 0.8 M and 0.8 M tokens at hand; pretrain takes 2.0 of 2.6 M in proportion.
    pretrain, extend, instruct = result["stages"]
    assert pretrain["tokens"] == pytest.approx(2_000_000)
    assert pretrain["epochs"]["stdlib"] == pytest.approx(4 * 2 / 2.6, rel=1e-3)
    assert extend["tokens"] == 400_000
    assert instruct["tokens"] == pytest.approx(800_000 * 0.6 / 2.6, rel=1e-3)
    for source, cap in (("prose", 2), ("stdlib", 4), ("dialogue", 2)):
        assert sum((s["epochs"] or {}).get(source, 0) for s in result["stages"]) <= cap
    assert instruct["steps"] == -(-instruct["tokens"] // 8192)


def test_what_a_spent_source_cannot_give_the_others_do() -> None:
    result = forecast(recipe(), {}, {"prose": 10_000, "stdlib": 2_000_000, "dialogue": 2_000_000})
    assert stage_of(result, "pretrain")["tokens"] == 2_000_000
    weighted = recipe().model_copy(
        update={
            "stages": (recipe().stages[0].model_copy(update={"weights": {"prose": 8, "stdlib": 1, "dialogue": 1}}),)
        }
    )
    pretrain = forecast(weighted, {}, {"prose": 10_000, "stdlib": 2_000_000, "dialogue": 2_000_000})["stages"][0]
    assert pretrain["epochs"]["prose"] == 2.0
    assert pretrain["epochs"]["stdlib"] == pytest.approx(pretrain["epochs"]["dialogue"])
    assert pretrain["tokens"] == pytest.approx(2_000_000, abs=2)


def test_measuring_the_rates_changes_no_weight_and_times_every_batch(tiny_recipe: Recipe, tiny_home: Path) -> None:
    model = Transformer(tiny_recipe.model)
    initialise(model, 1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = expected(tiny_recipe, tiny.data(tiny_recipe, tiny_home), Machine.detect(), Engine.over(model))
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
    assert all(s["seconds"] > 0 for s in result["stages"])
