"""What a check makes of a request's options: temperature 0, filters, penalties, log probabilities, the budget.

Legend: R rows, N positions, M guesses of all rows, V vocabulary.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from moesaic.errors import ServeError
from moesaic.serve.options import Options
from moesaic.serve.sampling import RowState, choose
from moesaic.serve.verify import GREEDY_RANK, Verdict, draft_choose, verify


def row(prompt: Sequence[int] = (), **options: object) -> RowState:
    return RowState(Options(**{"temperature": 1.0, **options}), prompt)  # type: ignore[arg-type]


def normal(*shape: int, seed: int, spread: float = 1.5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * spread


@pytest.mark.parametrize(
    "options", [{}, {"repetition_penalty": 1.4}, {"frequency_penalty": 1.0, "logit_bias": {3: 2.0}}]
)
@pytest.mark.parametrize("right", [0.0, 0.7, 1.0])
def test_greedy_answers_are_the_same_with_and_without_a_draft(options: dict[str, object], right: float) -> None:
    """The next logits depend on the last token; guesses are right at random."""
    table = normal(700, 700, seed=8)
    random = np.random.default_rng(0)

    def plain() -> list[int]:
        state, answer = row([5], temperature=0, **options), [5]
        for _ in range(40):
            answer.append(choose(table[answer[-1:]], [state])[0][0])
            state.note(answer[-1])
        return answer[1:]

    expected = plain()
    state, answer = row([5], temperature=0, **options), [5]
    while len(answer) <= 40:
        done = len(answer) - 1
        guesses = [t if random.random() < right else int(random.integers(700)) for t in expected[done : done + 3]]
        verdict = verify(table[[answer[-1], *guesses]], [guesses], None, [state])[0]
        answer += verdict.tokens
        for token in verdict.tokens:
            state.note(token)
        assert verdict.accepted == len(guesses) or right < 1
    assert answer[1:41] == expected


def test_greedy_leniency_takes_what_is_nearly_as_likely() -> None:
    p_V = torch.tensor([0.40, 0.35, 0.15, 0.10])
    logits_NV = torch.stack([p_V.log(), torch.tensor([0.0, 9.0, 0.0, 0.0])])

    def check(guess: int, leniency: float) -> Verdict:
        return verify(logits_NV, [[guess]], None, [row(temperature=0, leniency=leniency)])[0]

    assert check(1, 0.0).tokens == (0,)
    assert check(1, 0.04).tokens == (0,)
    assert check(1, 0.06).tokens == (1, 1)
    assert (check(1, 0.06).notes[0].lenient, check(1, 0.06).notes[0].shift) == (True, 1.0)
    assert check(2, 0.06).tokens == (0,)
    assert (check(2, 0.06).notes[0].lenient, check(2, 0.06).notes[0].shift) == (False, 0.0)
    assert check(0, 0.06).tokens == (0, 1)
    assert (check(0, 0.06).notes[0].lenient, check(0, 0.06).notes[0].shift) == (False, 0.0)


def test_greedy_leniency_stops_at_the_eighth_and_at_the_forbidden() -> None:
    flat = torch.arange(0, -1e-3, -1e-5)[:50]
    logits_NV = torch.stack([flat, flat])
    last, beyond = GREEDY_RANK - 1, GREEDY_RANK
    assert verify(logits_NV, [[last]], None, [row(temperature=0, leniency=0.5)])[0].accepted == 1
    assert verify(logits_NV, [[beyond]], None, [row(temperature=0, leniency=0.5)])[0].accepted == 0
    masked = torch.tensor([[0.1, 0.0, -math.inf], [0.0, 0.0, 0.0]])
    assert verify(masked, [[1]], None, [row(temperature=0, leniency=0.9)])[0].accepted == 1
    assert verify(masked, [[2]], None, [row(temperature=0, leniency=0.9)])[0].tokens == (0,)


def test_greedy_leniency_looks_at_penalised_logits() -> None:
    logits_NV = torch.tensor([[2.0, 1.0, 0.0]] * 2)
    state = row(temperature=0, leniency=0.2, logit_bias={1: 0.9})
    assert verify(logits_NV, [[1]], None, [state])[0].accepted == 1
    assert verify(logits_NV, [[1]], None, [row(temperature=0, leniency=0.2)])[0].accepted == 0


def test_filters_and_forbidden_tokens_hold_for_guesses() -> None:
    x_V = normal(50, seed=3)
    order = x_V.argsort(descending=True).tolist()
    for leniency in (0.0, 0.9):
        rows = [row(seed=s, top_k=3, leniency=leniency) for s in range(200)]
        q_RV = torch.full((200, 50), 1 / 50)
        verdicts = verify(x_V.expand(400, 50), [[s % 50] for s in range(200)], q_RV, rows)
        assert {t for v in verdicts for t in v.tokens} == set(order[:3])


def test_penalties_count_the_guesses_before() -> None:
    x_V = torch.tensor([1.0, 0.5, 0.0])
    state = row(temperature=0, frequency_penalty=0.6)
    # 0 first, then 1 because 0 is there, then 0 (0.4 against -0.1), then 2 (-0.2, -0.1, 0).
    verdict = verify(x_V.expand(4, 3), [[0, 1, 0]], None, [state])[0]
    assert verdict.tokens == (0, 1, 0, 2)
    assert verify(x_V.expand(3, 3), [[0, 0]], None, [state])[0].tokens == (0, 1)
    assert state.length == 0


def test_logprobs_of_a_check_are_the_models_own() -> None:
    logits_NV = normal(6, 40, seed=6)
    rows = [row(temperature=0, logprobs=2), row(temperature=0)]
    best = logits_NV.argmax(-1).tolist()
    first, second = verify(logits_NV, [[best[0], best[1]], [best[3], (best[4] + 1) % 40]], None, rows)
    expected_NV = logits_NV.log_softmax(-1)
    assert first.tokens == tuple(best[:3])
    for n, note in enumerate(first.notes):
        assert note.logprob == pytest.approx(float(expected_NV[n, best[n]]), abs=1e-5)
        assert [t for t, _ in note.top] == expected_NV[n].topk(2).indices.tolist()
    assert second.tokens == tuple(best[3:5])
    assert all(n.logprob is None for n in second.notes)


def mixed_rows() -> list[RowState]:
    options: list[dict[str, object]] = [
        {"temperature": 0},
        {"seed": 1, "leniency": 0.5},
        {"seed": 2, "top_p": 0.9, "logprobs": 1},
        {"temperature": 0, "leniency": 0.3},
        {"seed": 4, "temperature": 0.6, "frequency_penalty": 0.5},
        {"seed": 5},
    ]
    return [row([1], **o) for o in options]


@pytest.mark.parametrize("certain", [False, True])
def test_a_row_is_checked_the_same_in_any_company(certain: bool) -> None:
    rows, widths = mixed_rows(), [2, 3, 1, 2, 3, 0]
    starts = [0, *itertools.accumulate(k + 1 for k in widths)]
    logits_NV = normal(starts[-1], 300, seed=7, spread=0.5)
    q_MV = normal(sum(widths), 300, seed=8, spread=0.5).softmax(-1)
    drafts = [[(11 * r + k) % 300 for k in range(width)] for r, width in enumerate(widths)]
    for r in (0, 3):
        drafts[r][0] = int(logits_NV[starts[r]].argmax())
    together = verify(logits_NV, drafts, None if certain else q_MV, rows)
    assert any(v.accepted for v in together)
    for r, state in enumerate(mixed_rows()):
        guesses_at = slice(starts[r] - r, starts[r] - r + widths[r])
        q = None if certain else q_MV[guesses_at]
        assert verify(logits_NV[starts[r] : starts[r + 1]], [drafts[r]], q, [state])[0] == together[r]
    assert verify(logits_NV, drafts, None if certain else q_MV, mixed_rows()) == together


def test_without_guesses_a_check_is_a_choice() -> None:
    logits_RV = normal(6, 300, seed=9)
    tokens, notes = choose(logits_RV, mixed_rows())
    verdicts = verify(logits_RV, [[]] * 6, None, mixed_rows())
    assert [v.tokens for v in verdicts] == [(t,) for t in tokens]
    assert [v.notes for v in verdicts] == [(n,) for n in notes]
    assert {v.accepted for v in verdicts} == {0}


def test_leniency_ends_when_the_mean_shift_reaches_its_budget() -> None:
    model_V, draft_V = normal(30, seed=1), normal(30, seed=2)
    state = row(seed=3, leniency=0.6, max_shift=0.05)
    shifts: list[float] = []
    reached = None
    for _ in range(60):
        guesses: list[int] = []
        q = []
        for _ in range(3):
            new, q_RV = draft_choose(draft_V[None], [state], [guesses])
            assert q_RV is not None
            q.append(q_RV[0])
            guesses.append(new[0])
        verdict = verify(model_V.expand(4, 30), [guesses], torch.stack(q), [state])[0]
        for token, note in zip(verdict.tokens, verdict.notes, strict=True):
            if reached is not None:
                assert note.shift == 0
                assert not note.lenient
            shifts.append(note.shift)
            if reached is None and sum(shifts) / len(shifts) >= 0.05:
                reached = len(shifts)
            state.note(token)
    assert reached is not None
    assert state.leniency == 0
    assert state.shift == pytest.approx(sum(shifts))


def test_a_budget_that_is_not_reached_changes_nothing() -> None:
    logits_NV, q_MV = normal(2, 30, seed=1), normal(1, 30, seed=2).softmax(-1)
    free, budgeted = row(seed=1, leniency=0.5), row(seed=1, leniency=0.5, max_shift=0.99)
    assert verify(logits_NV, [[4]], q_MV, [free]) == verify(logits_NV, [[4]], q_MV, [budgeted])
    assert budgeted.leniency == 0.5


def test_tokens_without_a_draft_count_for_the_mean() -> None:
    logits_NV, q_MV = normal(2, 30, seed=1), normal(1, 30, seed=2).softmax(-1)
    lenient = row(seed=1, leniency=0.5, max_shift=0.05)
    for token in range(100):
        lenient.note(token)
    assert verify(logits_NV, [[4]], q_MV, [lenient])[0].notes[0].shift > 0.05
    assert lenient.leniency == 0.5


def test_a_budget_of_nought_is_exact_from_the_first_token() -> None:
    state = row(seed=1, leniency=0.5, max_shift=0.0)
    assert state.leniency == 0
    verdict = verify(normal(2, 30, seed=1), [[4]], normal(1, 30, seed=2).softmax(-1), [state])[0]
    assert verdict.notes[0].shift == 0


def test_require_exact_fails_closed() -> None:
    options = Options(require_exact=True)
    object.__setattr__(options, "leniency", 0.5)  # as if a default had been put in behind its back
    with pytest.raises(ServeError, match="require_exact"):
        RowState(options, ())
    assert RowState(Options(require_exact=True), ()).leniency == 0
