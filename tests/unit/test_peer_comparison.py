"""The rule by which a peer agrees with us can say no: on made-up answers, without a peer."""

import numpy as np
import pytest

from peers.comparison import compare, log_probs

TOKENS = [3, 1, 4, 1]


def logits(gap: float = 5.0) -> np.ndarray:
    """Logits `[4, 6]` whose best tokens are TOKENS, each better by `gap` than token 0 and by more than any other."""
    values_NV = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    for n, token in enumerate(TOKENS):
        values_NV[n, token] = 9.0
        values_NV[n, 0] = 9.0 - gap
    return values_NV


def test_equal_answers_agree() -> None:
    found = compare(TOKENS, logits(), TOKENS, log_probs(TOKENS, logits()))
    assert (found.problems, found.first_difference, found.log_prob_difference) == ([], None, 0)


def test_log_probabilities_are_those_of_a_softmax() -> None:
    p_V = np.exp(logits()[0].astype(np.float64))
    assert log_probs(TOKENS, logits())[0] == pytest.approx(np.log(p_V[3] / p_V.sum()), abs=1e-12)


def test_another_token_at_a_wide_gap_is_a_problem() -> None:
    found = compare(TOKENS, logits(0.01), [3, 1, 0, 1], log_probs(TOKENS, logits(0.01)))
    assert found.first_difference == 2
    assert found.gap == pytest.approx(0.01, rel=1e-3)
    assert "token 2 is 0, ours 4" in found.problems[0]


def test_another_token_at_a_tie_agrees_whatever_follows() -> None:
    found = compare(TOKENS, logits(5e-4), [3, 0, 5, 5], log_probs(TOKENS, logits(5e-4)))
    assert (found.problems, found.first_difference) == ([], 1)


def test_a_third_token_beside_a_tie_is_a_problem() -> None:
    assert compare(TOKENS, logits(5e-4), [3, 2, 4, 1], log_probs(TOKENS, logits(5e-4))).problems


@pytest.mark.parametrize(("error", "agrees"), [(5e-4, True), (-5e-4, True), (2e-3, False), (-2e-3, False)])
def test_a_log_probability_may_differ_by_a_thousandth(error: float, agrees: bool) -> None:
    theirs = log_probs(TOKENS, logits())
    theirs[-1] += error
    found = compare(TOKENS, logits(), TOKENS, theirs)
    assert (not found.problems) == agrees
    assert found.log_prob_difference == pytest.approx(abs(error))


def test_equal_tokens_do_not_excuse_log_probabilities_nor_the_reverse() -> None:
    wrong = log_probs(TOKENS, logits()) - 1
    assert len(compare(TOKENS, logits(), [0, 1, 4, 1], wrong).problems) == 2


def test_nan_is_a_problem() -> None:
    theirs = log_probs(TOKENS, logits())
    theirs[1] = np.nan
    assert compare(TOKENS, logits(), TOKENS, theirs).problems
    broken = logits()
    broken[2] = np.nan
    assert compare(TOKENS, broken, [3, 1, 0, 1], log_probs(TOKENS, logits())).problems


def test_a_token_outside_the_vocabulary_is_a_problem() -> None:
    assert compare(TOKENS, logits(), [3, 6, 4, 1], log_probs(TOKENS, logits())).problems


@pytest.mark.parametrize(("tokens", "count"), [(TOKENS[:3], 4), (TOKENS, 3), ([], 0)])
def test_a_short_answer_is_a_problem(tokens: list[int], count: int) -> None:
    assert compare(TOKENS, logits(), tokens, log_probs(TOKENS, logits())[:count]).problems


def test_nothing_compared_is_a_problem() -> None:
    assert compare([], logits()[:0], [], []).problems
