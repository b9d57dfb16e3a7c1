"""What fits: the described system's figures, and what must hold for any model."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.errors import PlanError
from moesaic.plan.device import device
from moesaic.plan.serving.memory import average_room, kv_bytes, room, stages, tightest, weight_bytes
from moesaic.plan.serving.replica import Replica, replica
from moesaic.plan.shapes import read_shape

GPT4 = read_shape("gpt4")


def described(hardware: str = "a100-40", weights: str = "bf16", **changes: int) -> Replica:
    return replica(replace(GPT4, **changes), device(hardware), tp=8, pp=16, weights=weights)


def test_weights_of_the_described_system() -> None:
    model = described()
    assert average_room(model, 8192).weight_bytes / 1e9 == pytest.approx(28.6, abs=0.1)
    assert max(weight_bytes(model, s) for s in stages(model)) / 1e9 == pytest.approx(30.5, abs=0.05)
    half = average_room(described("h100", "fp8"), 8192)
    assert half.weight_bytes / 1e9 == pytest.approx(14.3, abs=0.1)


def test_32k_on_40_gb_fits_with_one_head_and_not_with_84() -> None:
    model = described()
    assert tightest(model, 32_768)[1].sequences == 58
    assert average_room(model, 32_768).sequences == 77
    assert average_room(model, 8192).sequences == pytest.approx(309, abs=2)
    free = average_room(model, 32_768).free_bytes
    many = average_room(described(n_kv_heads=84), 32_768).kv_bytes
    assert int(free / many) == 7 < model.pp


def test_120_layers_over_16_stages() -> None:
    layers = [s.layers for s in stages(described())]
    assert sorted(layers) == [7] * 8 + [8] * 8
    assert layers[0] == layers[-1] == 7
    alone = [s.layers for s in stages(described(), first=0)]
    assert alone == [0] + [8] * 15
    with pytest.raises(PlanError, match="give 0 to 105"):
        stages(described(), first=106)


@given(st.integers(1, 60), st.integers(1, 60))
def test_stages_hold_every_layer_and_differ_by_one(n_layers: int, pp: int) -> None:
    if pp > n_layers:
        return
    shape = replace(GPT4, n_layers=n_layers)
    found = stages(replica(shape, device("h100"), tp=8, pp=pp))
    layers = [s.layers for s in found]
    assert sum(layers) == n_layers
    assert max(layers) - min(layers) <= 1
    assert layers[0] == min(layers)
    assert sum(s.sparse for s in found) == shape.sparse_layers


def test_dense_layers_lie_on_the_stages_where_they_stand() -> None:
    shape = read_shape("deepseek-v3")
    found = stages(replica(shape, device("h200"), tp=8, pp=4))
    assert [s.layers - s.sparse for s in found] == [3, 0, 0, 0]


@pytest.mark.parametrize(("heads", "copies"), [(1, 8), (2, 4), (4, 2), (8, 1), (24, 1)])
def test_heads_are_replicated_when_fewer_than_ranks(heads: int, copies: int) -> None:
    model = described(n_kv_heads=heads)
    total = model.shape.kv_bytes_per_token()
    mine = model.kv_bytes_per_token_layer * model.shape.n_layers
    assert mine * model.tp / total == copies


def test_a_latent_is_whole_on_every_rank() -> None:
    shape = read_shape("deepseek-v3")
    one, eight = (replica(shape, device("h200"), tp=tp).kv_bytes_per_token_layer for tp in (1, 8))
    assert one == eight == 576 * 2


@given(st.integers(1, 200_000), st.integers(1, 200_000))
def test_cache_grows_with_the_context_and_what_fits_shrinks(a: int, b: int) -> None:
    model, (short, long) = described("h200"), sorted((a, b))
    stage = stages(model)[8]
    assert kv_bytes(model, stage, short) <= kv_bytes(model, stage, long)
    assert room(model, stage, short).sequences >= room(model, stage, long).sequences


@given(st.sampled_from([1, 2, 4, 8]), st.integers(100, 100_000))
def test_what_fits_fills_the_room_and_no_more(tp: int, tokens: int) -> None:
    model = replica(read_shape("llama-3-8b"), device("h100"), tp=tp)
    found = room(model, stages(model)[0], tokens)
    assert found.sequences * found.kv_bytes <= found.free_bytes < (found.sequences + 1) * found.kv_bytes


def test_a_window_caps_the_cache() -> None:
    shape = read_shape("gpt-oss-20b")
    model = replica(shape, device("h100"))
    stage = stages(model)[0]
    assert shape.windowed_layers == shape.n_layers // 2
    grown = kv_bytes(model, stage, 20_000) - kv_bytes(model, stage, 10_000)
    assert grown == 10_000 * shape.n_layers / 2 * model.kv_bytes_per_token_layer


def test_all_weights_are_somewhere() -> None:
    shape = read_shape("mixtral-8x7b")
    for layout in ({"tp": 8}, {"tp": 2, "pp": 4}, {"dp": 8, "ep": 8}, {"tp": 2, "dp": 2, "ep": 4}):
        model = replica(shape, device("h100"), **layout)
        held = sum(weight_bytes(model, s) for s in stages(model)) * model.tp * model.dp
        copied = (model.dp - 1) * 2 * (shape.total_parameters - shape.sparse_layers * 8 * shape.block_parameters(14336))
        assert held - copied == pytest.approx(2 * shape.total_parameters, rel=1e-3)


def test_a_tied_matrix_is_held_twice_only_when_its_ends_are_apart() -> None:
    for pp, copies in ((1, 1), (16, 2)):
        model = replica(GPT4, device("h200"), tp=8, pp=pp)
        held = sum(weight_bytes(model, s) for s in stages(model)) * 8 / 2
        expected = GPT4.total_parameters + (copies - 1) * GPT4.embedding_parameters
        assert held == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ({"tp": 5}, "tp 5 does not divide 168 heads; use one of 1, 2, 3, 4, 6, 7, 8"),
        ({"pp": 121}, "at most 120"),
        ({"ep": 5}, "ep 5 does not divide 16 experts; use one of 1, 2, 4, 8, 16"),
        ({"tp": 8, "ep": 16}, "ep 16 does not divide the 8 ranks"),
        ({"tp": 0}, "tp 0: give at least 1"),
        ({"weights": "fp7"}, "no weight precision 'fp7'; use one of bf16"),
        ({"kv": "fp7"}, "no cache precision 'fp7'"),
    ],
)
def test_what_cannot_be_says_what_can(layout: dict[str, object], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        replica(GPT4, device("a100-80"), **layout)  # type: ignore[arg-type]
