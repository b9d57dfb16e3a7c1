"""The described layout on 24,960 ranks: what is built holds what the planner says, without the cluster."""

import re
import subprocess
import sys
from math import ceil

import pytest

from moesaic.parallel.scale import Row, check_scale, table
from moesaic.plan import train_plan
from moesaic.recipe import Recipe, read_recipe

FP32 = 4
EXPERTS = 8 * 3 * 10_752 * 28_672  # parameters of a stage of gpt4: one of each layer, gathered in bf16


def recipe_of(name: str, **layout: int | str) -> Recipe:
    return read_recipe(name, [f"layout.{key}={value}" for key, value in layout.items()])


def by_hand(recipe: Recipe, layers: int, replicas: int, expert_replicas: int) -> tuple[int, int]:
    """Parameters of a middle stage, and of the fullest of those ranks that share them: whole rows, rounded up."""
    m, L = recipe.model, recipe.layout
    inner, kv = m.n_heads * m.head_dim // L.tp, m.n_kv_heads * m.head_dim
    width = m.d_ff // L.etp
    dense = [  # rows, values in a row
        (m.d_model, 1),
        (m.d_model, 1),
        (inner, m.d_model),
        (kv, m.d_model),
        (kv, m.d_model),
        (m.d_model, inner),
        (m.n_experts, m.d_model),
    ]
    here = m.n_experts // L.ep
    experts = [(width, here * 2 * m.d_model), (width, here * m.d_model)]
    both = [(*w, replicas) for w in dense] + [(*w, expert_replicas) for w in experts]
    return layers * sum(r * n for r, n, _ in both), layers * sum(ceil(r / by) * n for r, n, by in both)


@pytest.fixture(scope="module")
def gpt4() -> list[Row]:
    return check_scale(recipe_of("gpt4"))


def test_every_stage_holds_exactly_the_parameters_of_the_forecast(gpt4: list[Row]) -> None:
    assert [(r.place.pp, r.place.dp, r.place.tp) for r in gpt4] == [
        (0, 0, 0),
        (0, 207, 7),
        (7, 0, 0),
        (7, 207, 7),
        (14, 0, 0),
        (14, 207, 7),
    ]
    assert all(r.layers == 8 and r.parameters[0] == r.parameters[1] for r in gpt4)
    recipe = recipe_of("gpt4")
    assert gpt4[2].parameters[0] == by_hand(recipe, 8, 208, 104)[0]


def test_the_heaviest_stage_holds_the_bytes_of_plan_train(gpt4: list[Row]) -> None:
    sheet = train_plan("gpt4", "a100-80", 24_960, interleave=2)
    row = max(gpt4, key=lambda r: r.bytes[0])
    assert row.place.pp in (0, 14)
    assert row.weight_bytes[0] / 1e9 == pytest.approx(sheet["memory_weights_gb"], rel=2e-6)
    assert row.gradient_bytes[0] / 1e9 == pytest.approx(sheet["memory_gradients_gb"], rel=2e-6)
    # Whole rows instead of equal shares: 276 of 28,672 for one of 104 replicas, and the like.
    assert 1 < row.optimizer_bytes[0] / 1e9 / sheet["memory_optimizer_gb"] < 1.004
    assert row.bytes[0] - row.bytes[1] == pytest.approx(row.uneven_bytes, abs=1)


def test_all_that_differs_is_rows_that_do_not_divide(gpt4: list[Row]) -> None:
    whole, fullest = by_hand(recipe_of("gpt4"), 8, 208, 104)
    middle = gpt4[2]
    assert middle.weight_bytes == (2 * whole, 2 * whole)
    assert middle.gradient_bytes == (FP32 * whole, FP32 * whole)
    assert middle.optimizer_bytes[0] == 3 * FP32 * fullest
    assert middle.trainer_bytes == 3 * FP32 * fullest + 2 * FP32 * whole - 2 * EXPERTS


def test_experts_that_no_other_rank_holds_are_their_own_masters() -> None:
    recipe = recipe_of("node")
    assert recipe.layout.edp == 1
    (row,) = check_scale(recipe, ranks=[0])
    m = recipe.model
    experts = m.n_layers * m.n_experts // recipe.layout.ep * 3 * m.d_ff * m.d_model
    dense = row.parameters[0] - experts
    assert row.trainer_bytes == row.optimizer_bytes[0] + row.gradient_bytes[0] + FP32 * dense


@pytest.mark.parametrize(
    ("name", "layout", "most"),
    [
        ("gpt4", {"ep": 1, "etp": 8}, 0.05),  # 3,584 rows of an expert for 208 replicas: 18 for 17.2
        ("gpt4", {"zero": 3}, 0.004),
        ("gpt4", {"zero": 0}, 0),
        ("gpt4", {"schedule": "1f1b", "cp": 2, "dp": 104}, 0.004),
        ("node", {}, 0),
        ("node", {"zero": 3}, 0.01),
    ],
)
def test_other_layouts_agree_as_well(name: str, layout: dict[str, int | str], most: float) -> None:
    recipe = recipe_of(name, **layout)
    for row in check_scale(recipe, ranks=[recipe.layout.world // recipe.layout.pp * (recipe.layout.pp - 1)]):
        built, planned = row.bytes
        assert row.parameters[0] == row.parameters[1]
        assert built - planned == pytest.approx(row.uneven_bytes + row.held_whole_bytes, abs=1)
        assert (row.held_whole_bytes > 0) == (recipe.layout.zero == 3 and recipe.layout.pp > 1)
        of_planned = row.optimizer_bytes[1] if recipe.layout.zero < 3 else planned
        assert 0 <= row.uneven_bytes <= most * of_planned


def test_zero_three_over_a_pipeline_holds_a_stage_whole() -> None:
    recipe = recipe_of("gpt4", zero=3)
    whole, fullest = by_hand(recipe, 8, 208, 104)
    (middle,) = check_scale(recipe, ranks=[7 * 208 * 8])
    assert middle.weight_bytes[0] == 2 * whole > 50 * middle.weight_bytes[1]
    assert middle.gradient_bytes[0] == FP32 * whole > 50 * middle.gradient_bytes[1]
    assert middle.trainer_bytes == 3 * FP32 * fullest + 2 * FP32 * whole - 2 * EXPERTS
    assert "held-whole" in table([middle])


def test_a_table_in_two_gigabytes() -> None:
    command = [sys.executable, "-m", "moesaic.parallel.scale", "gpt4"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout
    megabytes = re.search(r"24,960 ranks, ([\d,]+) MB", said)
    assert megabytes is not None
    assert int(megabytes[1].replace(",", "")) < 2000
    assert len(said.splitlines()) == 2 + 6
