"""The learning rate rises, never leaves its bounds, never jumps, and ends where the recipe says."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.recipe import Optimizer
from moesaic.train.schedule import learning_rate

TOTAL = 1_000_000
optimizers = st.builds(
    Optimizer,
    lr=st.floats(1e-6, 1.0),
    schedule=st.sampled_from(["cosine", "wsd"]),
    warmup_tokens=st.integers(0, TOTAL // 2),
    decay_share=st.floats(0.05, 1.0),
    final_share=st.floats(0.0, 1.0),
)


@given(optimizers, st.integers(0, TOTAL), st.integers(0, TOTAL))
def test_it_rises_through_the_warm_up_and_never_again(optimizer: Optimizer, a: int, b: int) -> None:
    early, late = sorted((a, b))
    first, second = (learning_rate(optimizer, t, TOTAL) for t in (early, late))
    if late <= optimizer.warmup_tokens:
        assert first <= second
    elif early >= optimizer.warmup_tokens:
        assert first >= second


@given(optimizers, st.integers(0, 2 * TOTAL))
def test_it_stays_within_its_bounds(optimizer: Optimizer, tokens: int) -> None:
    rate = learning_rate(optimizer, tokens, TOTAL)
    floor = optimizer.lr * optimizer.final_share if tokens >= optimizer.warmup_tokens else 0.0
    assert floor * (1 - 1e-12) <= rate <= optimizer.lr * (1 + 1e-12)


@given(optimizers)
def test_it_ends_at_the_final_share_and_stays_there(optimizer: Optimizer) -> None:
    for tokens in (TOTAL, 3 * TOTAL):
        rate = learning_rate(optimizer, tokens, TOTAL)
        assert math.isclose(rate, optimizer.lr * optimizer.final_share, rel_tol=1e-9, abs_tol=1e-15)


@given(optimizers, st.integers(0, TOTAL - 1))
def test_it_is_continuous(optimizer: Optimizer, tokens: int) -> None:
    step = abs(learning_rate(optimizer, tokens + 1, TOTAL) - learning_rate(optimizer, tokens, TOTAL))
    fall = (TOTAL - optimizer.warmup_tokens) * (optimizer.decay_share if optimizer.schedule == "wsd" else 1)
    steepest = 1 / max(1, optimizer.warmup_tokens) if tokens < optimizer.warmup_tokens else 1.6 / fall
    assert step <= optimizer.lr * steepest * 1.001


def test_points_worked_out_by_hand() -> None:
    cosine = Optimizer(lr=2.0, warmup_tokens=100, final_share=0.5)
    assert [learning_rate(cosine, t, 1100) for t in (0, 50, 100, 600, 1100)] == pytest.approx([0, 1, 2, 1.5, 1])
    wsd = Optimizer(lr=2.0, warmup_tokens=100, schedule="wsd", decay_share=0.5, final_share=0.0)
    assert [learning_rate(wsd, t, 1000) for t in (100, 500, 750, 1000)] == pytest.approx([2, 2, 1, 0])


def test_a_stage_shorter_than_its_warm_up_only_rises() -> None:
    assert learning_rate(Optimizer(lr=1.0, warmup_tokens=100), 50, 50) == 0.5
    assert learning_rate(Optimizer(lr=1.0, warmup_tokens=100), 100, 100) == 1.0
    assert learning_rate(Optimizer(lr=1.0, schedule="wsd", decay_share=0.0), 100, 100) == 1.0
