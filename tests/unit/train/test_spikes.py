"""A spike costs a step, a new plateau does not end the run, and a resume decides as before."""

import json
import random

import pytest

from moesaic.train.spikes import ENOUGH, WINDOW, SpikeGuard


def test_a_spike_is_refused_and_the_steps_after_it_are_not() -> None:
    guard = SpikeGuard(10.0)
    assert all(guard.admit(1.0 + 0.1 * (i % 3)) for i in range(40))
    assert not guard.admit(100.0)
    assert guard.admit(9.0)
    assert guard.admit(1.0)


def test_the_limit_is_the_multiple_of_the_median() -> None:
    for norm, admitted in ((20.0, True), (20.01, False)):
        guard = SpikeGuard(10.0)
        for value in (1.0, 2.0, 3.0) * 10:
            guard.admit(value)
        assert guard.admit(norm) is admitted


@pytest.mark.parametrize("factor", [0.0, 10.0])
@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_from_the_first_step(factor: float, norm: float) -> None:
    guard = SpikeGuard(factor)
    assert not guard.admit(norm)
    assert guard.state_dict() == {"norms": []}


def test_factor_zero_refuses_nothing_finite() -> None:
    guard = SpikeGuard(0.0)
    assert all(guard.admit(10.0**i) for i in range(100))


def test_it_does_not_judge_before_it_knows_what_is_usual() -> None:
    guard = SpikeGuard(2.0)
    assert all(guard.admit(10.0**i) for i in range(ENOUGH))
    assert not guard.admit(10.0 ** (2 * ENOUGH))


def test_norms_that_stay_high_are_admitted_in_the_end() -> None:
    guard = SpikeGuard(10.0)
    for _ in range(WINDOW):
        guard.admit(1.0)
    refused = [guard.admit(100.0) for _ in range(WINDOW)].count(False)
    assert WINDOW // 4 < refused < WINDOW * 3 // 4


def test_a_resume_through_json_decides_exactly_as_before() -> None:
    dice, guard = random.Random(0), SpikeGuard(3.0)
    for _ in range(100):
        guard.admit(dice.lognormvariate(0, 1))
    other = SpikeGuard(3.0)
    other.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    assert [guard.admit(n / 7) for n in range(100)] == [other.admit(n / 7) for n in range(100)]
    assert guard.state_dict() == other.state_dict()
