"""Restarts are counted since the last progress, and waiting grows only without it."""

import pytest

from moesaic.errors import MoesaicError
from moesaic.resilience.limits import HANG_AT_LEAST_S, Budget, Limits


def test_the_first_restart_comes_at_once_then_waiting_doubles_up_to_a_limit() -> None:
    budget = Budget(Limits(restarts=6, first_wait=1.0, longest_wait=5.0))
    assert [budget.admit(t, -1) for t in range(7)] == [0.0, 1.0, 2.0, 4.0, 5.0, 5.0, None]


def test_a_new_checkpoint_sets_the_count_to_zero() -> None:
    budget = Budget(Limits(restarts=2, first_wait=1.0))
    assert [budget.admit(0, 10), budget.admit(1, 10), budget.admit(2, 20), budget.admit(3, 20)] == [0.0, 1.0, 0.0, 1.0]
    assert budget.admit(4, 20) is None


def test_a_checkpoint_that_was_lost_is_no_progress() -> None:
    """A damaged newest checkpoint is passed over: the run is then further back than it was."""
    budget = Budget(Limits(restarts=2, first_wait=1.0))
    assert [budget.admit(0, 20), budget.admit(1, 15), budget.admit(2, 20)] == [0.0, 1.0, None]


def test_restarts_long_ago_do_not_count() -> None:
    budget = Budget(Limits(restarts=1, window=100.0))
    assert budget.admit(0, -1) == 0.0
    assert budget.admit(50, -1) is None
    assert budget.admit(101, -1) == 0.0


def test_a_hang_is_ten_median_steps_but_a_minute_at_least() -> None:
    assert Limits().hang_after([]) == HANG_AT_LEAST_S
    assert Limits().hang_after([1.0, 2.0, 900.0]) == HANG_AT_LEAST_S
    assert Limits().hang_after([20.0, 20.0, 900.0]) == 200.0
    assert Limits(hang=3.0).hang_after([20.0]) == 3.0


@pytest.mark.parametrize("wrong", [{"hang": 0.0}, {"restarts": -1}, {"stop": -2.0}])
def test_limits_that_would_end_every_run_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(MoesaicError, match=next(iter(wrong))):
        Limits(**wrong)  # type: ignore[arg-type]
