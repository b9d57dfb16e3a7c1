"""The ledger of a run accounts for every second between its first and its last line, once."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from moesaic.errors import PlanError
from moesaic.plan.goodput import daly, save_interval_steps
from moesaic.recipe import read_recipe
from moesaic.train.goodput import goodput_of, place, resume_event

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def at(seconds: float) -> str:
    return (NOON + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def step(number: int, ends: float, seconds: float = 1.0, **more: Any) -> dict[str, Any]:
    return {
        "step": number,
        "stage": "pretrain",
        "seconds": seconds,
        "time_iso": at(ends),
        "batch_sequences": 8,
        "batch_tokens": 100,
    } | more


def save(number: int, blocked: float) -> dict[str, Any]:
    return {"event": "checkpoint", "at_step": number, "blocked_seconds": blocked, "seconds": 1.0, "bytes": 10}


def resumed(lines: list[dict[str, Any]], at_step: int, seconds: float) -> list[dict[str, Any]]:
    """What the file holds after going on from `at_step`."""
    event = resume_event(lines, at_step, NOON + timedelta(seconds=seconds))
    return [*(line for line in lines if place(line) <= at_step), event]


def test_an_undisturbed_run_is_work_and_checkpoints() -> None:
    lines = [step(1, 1), step(2, 2), save(2, 0.5), step(3, 3.5), step(4, 4.5), save(4, 0.5)]
    ledger = goodput_of(lines)
    assert (ledger.productive, ledger.checkpoint, ledger.lost, ledger.restart) == (4.0, 1.0, 0.0, 0.0)
    assert ledger.expected is None
    assert ledger.share == pytest.approx(0.8)


def test_a_death_costs_the_repeated_steps_and_the_time_without_ranks() -> None:
    """Two steps, a save, two more; dead at 4.5; new ranks at 7, first step begins at 8."""
    lines = [step(1, 1), step(2, 2), save(2, 0.5), step(3, 3.5), step(4, 4.5)]
    lines = resumed(lines, 2, 7.0)
    assert lines[-1]["lost_steps"] == 2
    lines += [step(3, 9), step(4, 10)]
    ledger = goodput_of(lines)
    assert ledger.productive == 4.0
    assert ledger.lost == 2.0
    assert ledger.restart == pytest.approx(2.5 + 1.0)
    assert ledger.failures == 1
    assert ledger.wall == pytest.approx(10.0)
    assert ledger.other == pytest.approx(0.0, abs=1e-6)
    assert "goodput 40.0%" in str(ledger)
    assert ledger.expected is not None


def test_walking_back_beyond_an_earlier_resume_forgets_nothing() -> None:
    lines = [step(1, 1), step(2, 2), step(3, 3)]
    lines = resumed(lines, 2, 4.0)  # step 3 lost, 1 s down
    lines += [step(3, 5), step(4, 6)]
    lines = resumed(lines, 1, 8.0)  # steps 2 to 4 lost and the resume at 2 dropped
    assert [line.get("event") for line in lines] == [None, "resume"]
    assert lines[-1] | {"lost_steps": 4, "lost_seconds": 4.0, "failures": 2} == lines[-1]
    lines += [step(2, 9)]
    ledger = goodput_of(lines)
    assert ledger.lost == 4.0
    assert ledger.restart == pytest.approx(1.0 + 2.0)
    assert ledger.wall == pytest.approx(9.0)
    assert ledger.failures == 2


def test_a_run_that_died_before_its_first_checkpoint_counts_from_its_first_start() -> None:
    lines = resumed([step(1, 1), step(2, 2)], 0, 5.0)
    lines += [step(1, 6), step(2, 7)]
    ledger = goodput_of(lines)
    assert (ledger.productive, ledger.lost, ledger.restart) == (2.0, 2.0, 3.0)
    assert ledger.wall == pytest.approx(7.0)


def test_a_night_between_a_stop_and_a_resume_is_no_failure() -> None:
    lines = [step(1, 1), {"event": "stop", "at_step": 1, "time_iso": at(1)}]
    lines = [*resumed(lines, 1, 30_000.0), step(2, 30_001)]
    ledger = goodput_of(lines)
    assert ledger.failures == 0
    assert ledger.restart == 0.0
    assert ledger.wall == pytest.approx(2.0)


def test_the_bubble_of_a_pipeline_is_predicted_from_its_micro_batches() -> None:
    """8 sequences in micro-batches of 1 through 2 stages of 1F1B: (2 - 1) / (8 + 2 - 1)."""
    recipe = read_recipe("pocket")
    stage = recipe.stages[0].model_copy(update={"micro_batch": 1})
    layout = recipe.layout.model_copy(update={"pp": 2, "schedule": "1f1b"})
    recipe = recipe.model_copy(update={"layout": layout, "stages": (stage, *recipe.stages[1:])})
    assert goodput_of([step(1, 1), step(2, 2)], recipe).bubble == pytest.approx(2 / 9)
    assert goodput_of([step(1, 1)], read_recipe("pocket")).bubble == 0.0


def test_the_bubble_is_that_of_the_replicas_of_the_batch() -> None:
    """12 sequences on 1 replica, then, after 100 tokens, on 4: 12 and 3 micro-batches through 2 stages."""
    recipe = read_recipe("pocket")
    first = recipe.stages[0].batch[0]
    ramp = (
        first.model_copy(update={"after_tokens": 0, "dp": 1}),
        first.model_copy(update={"after_tokens": 100, "dp": 4}),
    )
    stage = recipe.stages[0].model_copy(update={"micro_batch": 1, "batch": ramp})
    layout = recipe.layout.model_copy(update={"pp": 2, "dp": 2, "schedule": "1f1b"})
    recipe = recipe.model_copy(update={"layout": layout, "stages": (stage, *recipe.stages[1:])})
    lines = [step(1, 1, batch_sequences=12), step(2, 2, batch_sequences=12)]
    assert goodput_of(lines, recipe).bubble == pytest.approx(1 / 13 + 1 / 4)


def test_the_bubble_counts_micro_batches_as_the_pipeline_makes_them() -> None:
    """8 sequences of a replica, micro-batches of up to 8: two of 4 fill two stages."""
    recipe = read_recipe("pocket")
    stage = recipe.stages[0].model_copy(update={"micro_batch": 8})
    layout = recipe.layout.model_copy(update={"pp": 2, "schedule": "1f1b"})
    recipe = recipe.model_copy(update={"layout": layout, "stages": (stage, *recipe.stages[1:])})
    assert goodput_of([step(1, 1)], recipe).bubble == pytest.approx(1 / 3)
    # 7 in pieces of 3 are three, which two stages take; as many as 7 / 8 rounded up would be one.
    assert goodput_of([step(1, 1, batch_sequences=7)], recipe).bubble == pytest.approx(1 / 4)


def test_the_save_interval_is_dalys_within_its_bounds() -> None:
    assert save_interval_steps(3600, 2.0, 1.0, 1000) == round(float(daly(2.0, 3600.0)))
    assert save_interval_steps(3600, 2.0, 1.0, 50) == 50
    assert save_interval_steps(1.0, 0.001, 10.0, 50) == 1
    assert save_interval_steps(3600, 0.0, 1.0, 1000, write=40.0) == 40
    with pytest.raises(PlanError, match="times above 0"):
        save_interval_steps(0.0, 1.0, 1.0, 5)
