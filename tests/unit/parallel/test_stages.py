"""The split of layers over pipeline pieces: against every split there is, the planner's rule, and gpt4."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.errors import RecipeError
from moesaic.parallel.stages import layer_costs, piece_of, split_layers
from moesaic.plan.stages import layer_counts
from moesaic.recipe import Layout, Model, read_recipe


@st.composite
def models(draw: st.DrawFn, dense: bool = True) -> Model:
    n = draw(st.integers(1, 8))
    return Model(
        vocab_size=draw(st.integers(1, 2000)),
        d_model=8,
        n_layers=n,
        n_heads=2,
        head_dim=4,
        d_ff=draw(st.integers(1, 64)),
        n_experts=4,
        top_k=draw(st.integers(1, 4)),
        dense_layers=tuple(sorted(draw(st.sets(st.integers(0, n - 1), max_size=n)))) if dense else (),
        dense_d_ff=draw(st.integers(1, 256)) if dense else None,
    )


def every_split(n: int, pieces: int) -> list[list[int]]:
    """Counts of every way to cut n layers into pieces."""
    out = []
    for cuts in combinations(range(1, n), pieces - 1):
        ends = [0, *cuts, n]
        out.append([b - a for a, b in pairwise(ends)])
    return out


def dearest(config: Model, counts: list[int]) -> int:
    costs, at, dear = layer_costs(config), 0, []
    costs[-1] += config.vocab_size * config.d_model
    for count in counts:
        dear.append(sum(costs[at : at + count]))
        at += count
    return max(dear)


@settings(max_examples=150, deadline=None)
@given(models(), st.data())
def test_split_is_the_cheapest_then_the_most_even_then_the_lightest_in_front(config: Model, data: st.DataObject):
    pieces = data.draw(st.integers(1, config.n_layers))
    split = split_layers(config, pieces)
    assert [layer for piece in split for layer in piece] == list(range(config.n_layers))
    counts = [len(piece) for piece in split]

    def order(c: list[int]) -> tuple[int, int, list[int]]:
        return dearest(config, c), sum(n * n for n in c), c

    assert order(counts) == min(order(c) for c in every_split(config.n_layers, pieces))


@settings(max_examples=100, deadline=None)
@given(models(dense=False), st.integers(1, 8))
def test_planner_splits_the_same_where_layers_are_alike_and_the_head_costs_no_more_than_one(config: Model, pieces: int):
    head = config.vocab_size * config.d_model
    if pieces > config.n_layers or head > layer_costs(config)[0]:
        return
    counts = [len(piece) for piece in split_layers(config, pieces)]
    assert counts == layer_counts(config.n_layers, pieces, lightest=(pieces - 1,))


@pytest.mark.parametrize(("pieces", "layers"), [(15, 8), (30, 4), (120, 1)])
def test_gpt4_is_split_evenly(pieces: int, layers: int):
    assert [len(piece) for piece in split_layers(read_recipe("gpt4").model, pieces)] == [layers] * pieces


def test_a_head_dearer_than_layers_takes_them_off_the_last_piece():
    config = Model(vocab_size=10_000, d_model=8, n_layers=8, n_heads=2, head_dim=4, d_ff=64, n_experts=4, top_k=2)
    assert config.vocab_size * config.d_model > 8 * layer_costs(config)[0]
    assert [len(piece) for piece in split_layers(config, 3)] == [3, 4, 1]


def test_costs_of_layers_are_the_active_parameters_but_for_norms_and_embedding():
    config = read_recipe("pocket").model
    assert sum(layer_costs(config)) == (
        config.active_parameters - config.embedding_parameters - (2 * config.n_layers + 1) * config.d_model
    )


def test_every_piece_is_on_one_rank():
    assert piece_of(Layout(pp=3), 2) == [2]
    assert piece_of(Layout(pp=3, schedule="interleaved", chunks=3), 1) == [1, 4, 7]
    assert piece_of(Layout(pp=3, schedule="zero_bubble"), 1) == [1, 4]
    for layout in (
        Layout(),
        Layout(schedule="zero_bubble"),
        Layout(pp=4, schedule="interleaved", chunks=2),
        Layout(pp=4, schedule="zero_bubble"),
    ):
        held = sorted(piece for rank in range(layout.pp) for piece in piece_of(layout, rank))
        assert held == list(range(layout.pp * layout.chunks_per_rank))


def test_what_cannot_be_split_is_refused():
    config = read_recipe("pocket").model
    with pytest.raises(RecipeError, match="lower pp or chunks"):
        split_layers(config, config.n_layers + 1)
    with pytest.raises(RecipeError, match="use 0 to 1"):
        piece_of(Layout(pp=2), 2)
