"""Scaling laws: published optima and anchors, closed forms against search, experts in serving against sampling."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.errors import PlanError
from moesaic.plan.optimality import (
    HOFFMANN,
    REFIT,
    SBASE,
    LossLaw,
    Repeated,
    best_by_ratio,
    effective_tokens,
    readings,
    serving_by_experts,
    with_experts,
)
from moesaic.plan.optimality_sheet import optimality_sheet, sources_of
from moesaic.plan.routing import touched
from moesaic.plan.shape import Shape, shape_of
from moesaic.recipe import read_recipe

BUDGET = 2.15e25


@pytest.fixture(scope="module")
def gpt4() -> Shape:
    recipe = read_recipe("gpt4")
    return shape_of(recipe.model, recipe.name)


def test_optimum_of_the_described_budget() -> None:
    assert best_by_ratio(BUDGET) == pytest.approx((423e9, 8.5e12), rel=5e-3)
    assert REFIT.best(BUDGET) == pytest.approx((462e9, 7.8e12), rel=1e-2)


def test_laws_give_the_optima_that_their_papers_print() -> None:
    # Chinchilla's own budget: Besiroglu et al. find about 20 tokens per parameter where it has them, 70 B x 1.4 T.
    size, data = REFIT.best(5.76e23)
    assert size == pytest.approx(70e9, rel=0.05)
    assert data / size == pytest.approx(20, abs=2)
    # Hoffmann et al., fig. 4: for Gopher's budget approach 3 wants 40 B parameters.
    assert HOFFMANN.best(5.76e23)[0] == pytest.approx(40e9, rel=0.02)


@pytest.mark.parametrize("law", [HOFFMANN, REFIT], ids=["approach 3", "refit"])
@given(exponent=st.floats(18, 27))
def test_closed_form_is_the_least_loss_of_the_budget(law: LossLaw, exponent: float) -> None:
    size, data = law.best(10**exponent)
    assert 6 * float(size) * float(data) == pytest.approx(10**exponent)
    least = float(law.loss(size, data))
    for factor in (0.5, 0.95, 1.05, 2):
        assert least < float(law.loss(float(size) * factor, float(data) / factor))


def test_readings_of_a_mixture(gpt4: Shape) -> None:
    tokens = {name: 20 * size / 1e12 for name, size in readings(gpt4).items()}
    assert tokens == pytest.approx({"active": 5.58, "total": 36.65, "geometric mean": 14.3}, abs=0.01)


@given(st.floats(1e6, 1e13), st.floats(1, 200))
def test_repeated_tokens_are_worth_less_but_something(unique: float, epochs: float) -> None:
    worth = float(effective_tokens(unique, epochs))
    assert unique * (1 - 1e-12) <= worth <= unique * epochs * (1 + 1e-12)
    assert worth <= float(effective_tokens(unique, epochs + 1)) < unique * (1 + 15.3878)


def test_two_and_four_epochs_are_nearly_new() -> None:
    assert effective_tokens(1, 1) == 1
    assert effective_tokens(1, 2) == pytest.approx(1.968, abs=1e-3)
    assert effective_tokens(1, 4) == pytest.approx(3.726, abs=1e-3)
    # "up to 4 epochs ... negligible changes to loss compared to unique data", after 40 repeating is worthless.
    assert float(effective_tokens(1, 41)) / 41 < 0.4
    assert float(effective_tokens(1, 60) / effective_tokens(1, 41)) < 1.06


def test_recipe_tells_its_sources() -> None:
    recipe = read_recipe("gpt4")
    found = sources_of(recipe)
    assert found == {"text": Repeated(4.5e12, 2), "code": Repeated(1e12, 4)}
    assert sources_of(recipe, "instruct") == {"instructions": Repeated(2e9, 2)}
    with pytest.raises(PlanError, match="no stage 'x'; there are: pretrain"):
        sources_of(recipe, "x")


def test_law_of_routing_meets_what_its_paper_says() -> None:
    # Sec. 5: 5 M parameters with 128 experts do as well as a dense model of 55 M; routing ends to help at 937 B.
    assert SBASE.dense_equivalent(5e6, 128) == pytest.approx(55e6, rel=0.1)
    assert SBASE.cutoff == pytest.approx(937e9, rel=0.1)
    assert SBASE.dense_equivalent(SBASE.cutoff, 64) == pytest.approx(SBASE.cutoff)


@given(st.floats(7, 11.5), st.floats(1, 500), st.floats(1.01, 4))
def test_experts_gain_less_the_more_there_are_and_the_larger_the_model(
    size: float, experts: float, more: float
) -> None:
    n = 10**size
    assert SBASE.dense_equivalent(n, 1) == pytest.approx(n)
    assert SBASE.saturated(experts) < SBASE.saturated(experts * more) < SBASE.most
    assert SBASE.dense_equivalent(n, experts) < SBASE.dense_equivalent(n, experts * more)
    gain = [float(SBASE.dense_equivalent(x, experts * more)) / x for x in (n, 2 * n)]
    assert gain[0] > gain[1]


def test_dense_equivalent_has_the_loss_of_the_mixture() -> None:
    size = SBASE.dense_equivalent(1e9, 32)
    assert SBASE.log_loss(size, 1) == pytest.approx(float(SBASE.log_loss(1e9, 32)))


@pytest.mark.parametrize(("batch", "expected"), [(1, 2), (16, 14), (512, 16)])
def test_experts_touched_by_the_described_model(batch: int, expected: float) -> None:
    assert touched(16, 2, batch) == pytest.approx(expected, abs=0.15)


def test_experts_touched_are_what_sampling_finds() -> None:
    rng = np.random.default_rng(3)
    for experts, k, batch in ((16, 2, 8), (64, 2, 32), (128, 8, 16)):
        scores = rng.random((3000, batch, experts))
        chosen = np.argpartition(scores, k, axis=-1)[..., :k]
        met = [len(np.unique(one)) for one in chosen]
        error = np.std(met) / np.sqrt(len(met))
        assert np.mean(met) == pytest.approx(float(touched(experts, k, batch)), abs=4 * error)


def test_one_token_reads_the_active_weights(gpt4: Shape) -> None:
    rows = serving_by_experts(gpt4)
    one = {r["experts"]: r for r in rows if r["step_tokens"] == 1}
    assert one[16]["weights_read_gb"] == pytest.approx(2 * gpt4.active_parameters / 1e9)
    most = {r["experts"]: r for r in rows if r["step_tokens"] == 512}
    assert most[16]["weights_read_gb"] == pytest.approx(2 * gpt4.total_parameters / 1e9)
    assert most[128]["tokens_per_touched_expert"] == pytest.approx(8, abs=0.01)
    assert [with_experts(gpt4, n).active_parameters - gpt4.active_parameters for n in (8, 64)] == [
        120 * 10_752 * (n - 16) for n in (8, 64)
    ]  # the router's rows alone


def test_a_separate_embedding_is_not_read_whole(gpt4: Shape) -> None:
    untied = replace(gpt4, tied=False)
    row = serving_by_experts(untied, (16,), (1,))[0]
    assert row["weights_read_gb"] == pytest.approx(2 * gpt4.active_parameters / 1e9)  # the head, but no embedding


def test_sheet_holds_the_answers(gpt4: Shape) -> None:
    recipe = read_recipe("gpt4")
    sheet = optimality_sheet(gpt4, 13e12, BUDGET, sources_of(recipe))
    out = sheet.to_json()
    assert out["unique_tokens"] == pytest.approx(5.5e12)
    assert out["effective_tokens"] == pytest.approx(4.5e12 * 1.9682 + 1e12 * 3.7257, rel=1e-4)
    assert [r["experts"] for r in out["experts_by_law"]] == [8, 16, 64, 128]
    assert any("2202.01169" in note and "extrapolation" in note for note in out["notes"])
    assert not any("The sources make" in note for note in out["notes"])
    assert optimality_sheet(gpt4, 13e12)["budget_flop"] == 6.0 * gpt4.active_parameters * 13e12
    keys = [f.key for f in sheet.figures] + [t.key for t in sheet.tables]
    assert len(keys) == len(set(keys))


def test_sources_that_do_not_make_the_tokens_are_said(gpt4: Shape) -> None:
    sheet = optimality_sheet(gpt4, 13e12, None, {"text": Repeated(1e12, 2)})
    assert any("The sources make 2T tokens counting epochs, the run asks for 13T" in note for note in sheet.notes)


def test_dense_model_has_no_experts_to_compare() -> None:
    dense = Shape("dense", 10, 512, 8, 8, 64, 2048, 32_000)
    out = optimality_sheet(dense, 1e9).to_json()
    assert "experts_by_law" not in out
    assert len({r["parameters"] for r in out["chinchilla_readings"]}) <= 2


def test_impossible_is_refused(gpt4: Shape) -> None:
    with pytest.raises(PlanError, match="1 experts: a token meets 2"):
        with_experts(gpt4, 1)
    with pytest.raises(PlanError, match="epochs from 1"):
        Repeated(1e9, 0.5)
    with pytest.raises(PlanError, match="unique tokens are positive"):
        Repeated(-1, 2)
