"""The batch ramp: what an early, small batch idles on all replicas, and what fewer replicas save."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.errors import PlanError
from moesaic.plan.ramp import Ramp, plan_ramp, ramp_notes, ramp_rows
from moesaic.plan.schedule import schedulable
from moesaic.recipe import Layout, Model, read_recipe
from moesaic.recipe.stage import BatchStep, Stage

MODEL = Model(
    vocab_size=512, d_model=64, n_layers=120, n_heads=8, head_dim=8, n_kv_heads=1, d_ff=64, n_experts=16, top_k=2
)
LAYOUT = Layout(pp=15, dp=208, tp=8, schedule="interleaved")
FLOPS, PEAK, MFU = 1.67e12, 312e12, 0.34


def stage(*batch: tuple[int, int], tokens: int = 10**12, micro_batch: int = 1) -> Stage:
    """A stage with steps of (after_tokens, sequences)."""
    steps = tuple(BatchStep(after_tokens=after, tokens=n * 8192) for after, n in batch)
    return Stage(name="s", sources=("x",), tokens=tokens, seq_len=8192, batch=steps, micro_batch=micro_batch)


def ramp_of(stage: Stage, layout: Layout = LAYOUT, **changes: Any) -> Ramp:
    wanted = {"mfu": MFU, "flops_per_token": FLOPS, "peak_flops": PEAK, "v": 8} | changes
    return plan_ramp(stage, layout, MODEL, **wanted)


DESCRIBED = stage((0, 480), (50 * 10**9, 36 * 208))  # 3.9 M tokens, then 61.3 M


def test_described_start_on_all_replicas_idles() -> None:
    plain = Layout(pp=15, dp=208, tp=8, schedule="1f1b")
    start = ramp_of(stage((0, 488)), plain).steps[0]
    assert start.given.micro_batches == pytest.approx(2.346, abs=1e-3)
    assert start.given.bubble == pytest.approx(0.856, abs=5e-4)
    assert not start.given.runs  # not a whole number


def test_growing_replicas_with_the_batch() -> None:
    ramp = ramp_of(DESCRIBED)
    first, last = ramp.steps
    assert first.advised is not None
    assert (first.advised.dp, first.advised.micro_batches) == (16, 30)
    assert first.advised.bubble == pytest.approx(14 / (8 * 30 + 14))
    assert last.advised == last.given
    assert (last.given.dp, last.given.micro_batches, last.given.runs) == (208, 36, True)
    assert first.batch_tokens_per_expert == 480 * 8192 / 8
    note = ramp_notes(ramp, DESCRIBED, LAYOUT, 8)[-1]
    assert "dp 16 x 30 (3.9 M tokens) -> dp 208 x 36 (61.3 M tokens)" in note


def test_hours_follow_from_the_bubble() -> None:
    ramp = ramp_of(DESCRIBED)
    first, last = ramp.steps
    final = 14 / (8 * 36 + 14)
    assert last.given.mfu == MFU
    assert first.advised is not None
    for run, gpus in ((first.given, 24_960), (first.advised, 16 * 120)):
        assert run.mfu == pytest.approx(MFU * (1 - run.bubble) / (1 - final))
        assert run.gpu_hours == pytest.approx(50e9 * FLOPS / (PEAK * run.mfu) / 3600)
        assert run.days == pytest.approx(run.gpu_hours / gpus / 24)
    assert ramp.saved_gpu_hours == pytest.approx(first.given.gpu_hours - first.advised.gpu_hours)
    assert ramp.days_advised > ramp.days  # fewer devices take longer
    assert first.tokens + last.tokens == DESCRIBED.tokens


def test_rows_are_one_a_step_and_shares_sum_to_one() -> None:
    rows = ramp_rows(ramp_of(DESCRIBED))
    assert [row["batch_sequences"] for row in rows] == [480, 7488]
    assert sum(float(row["days_share"]) for row in rows) == pytest.approx(1)  # type: ignore[arg-type]
    assert rows[0].keys() == rows[1].keys()


def test_steps_that_the_stage_never_reaches_are_left_out() -> None:
    ramp = ramp_of(stage((0, 480), (10**12, 7488)))
    assert len(ramp.steps) == 1
    assert ramp.steps[0].tokens == 10**12
    assert ramp.steps[0].given.mfu == MFU  # the last one reached


def test_shipped_recipe_cannot_interleave_its_last_step() -> None:
    recipe = read_recipe("gpt4")
    first = recipe.stages[0]
    ramp = plan_ramp(first, recipe.layout, recipe.model, mfu=MFU, flops_per_token=FLOPS, peak_flops=PEAK, v=8)
    assert ramp.steps[-1].given.micro_batches == 35
    assert not ramp.steps[-1].given.runs
    notes = ramp_notes(ramp, first, recipe.layout, 8)
    assert any("use 30 or 36" in n and "that is 51.1 M or 61.3 M tokens" in n for n in notes)
    assert any(n.startswith("grow data parallelism") for n in notes)


def test_where_no_number_of_replicas_helps() -> None:
    plain, small = Layout(pp=15, dp=4, schedule="1f1b"), stage((0, 60))
    ramp = ramp_of(small, plain)
    assert ramp.steps[0].advised is None
    assert ramp.saved_gpu_hours == 0
    assert ramp_rows(ramp)[0]["advised_replicas"] is None
    assert "the smallest is 18.9% on dp = 1" in ramp_notes(ramp, small, plain)[-1]


@given(
    sequences=st.integers(1, 200).map(lambda k: 4 * k),
    dp=st.sampled_from([4, 12, 16, 24]),
    pp=st.integers(1, 8),
    schedule=st.sampled_from(["1f1b", "interleaved", "zero_bubble"]),
    limit=st.floats(0.02, 0.6),
    engine=st.sampled_from(["torch", "megatron"]),
)
def test_advice_is_the_largest_number_that_runs_under_the_limit(
    sequences: int, dp: int, pp: int, schedule: Any, limit: float, engine: Any
) -> None:
    layout = Layout(pp=pp, dp=dp, schedule=schedule)
    step = ramp_of(stage((0, sequences)), layout, v=2, limit=limit, engine=engine).steps[0]
    chunks = 1 if schedule == "1f1b" else 2
    for replicas in (d for d in range(1, dp + 1) if dp % d == 0):
        run = ramp_of(stage((0, sequences)), layout, v=2, replicas=[replicas], limit=limit, engine=engine).steps[0]
        whole = sequences % replicas == 0 and schedulable(sequences // replicas, pp, chunks, engine)
        assert (run.fewest_bubble is not None) == whole
        if run.advised:
            assert run.advised.bubble <= limit
            assert step.advised is not None
            assert step.advised.dp >= replicas


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mfu": 1.2}, "mfu 1.2: give a share"),
        ({"limit": 0}, "limit 0: give a bubble"),
        ({"peak_flops": 0}, "must be positive"),
        ({"replicas": [0, 4]}, "replicas 0: at least 1"),
    ],
)
def test_mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        ramp_of(DESCRIBED, **changes)
