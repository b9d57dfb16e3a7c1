"""Sampling of many rows at once: the distribution of `generate`, each row for itself, exactly.

Legend: R rows, V vocabulary.
"""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from moesaic.errors import ServeError
from moesaic.model import generate
from moesaic.serve.draw import BLOCK, draw, keep_likely, likeliest
from moesaic.serve.options import Options
from moesaic.serve.sampling import RowState, check_vocabulary, choose, distributions
from moesaic.serve.step_plan import PLAIN

PROPERTY = settings(derandomize=True, deadline=None, max_examples=60)


def logits(rows: int, vocab: int, *, seed: int = 0, spread: float = 3.0, digits: int | None = None) -> Tensor:
    """Normal logits `[R, V]`; with `digits` after the point only, so that many are equal."""
    x_RV = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread
    return x_RV if digits is None else (x_RV * 10**digits).round() / 10**digits


def row(prompt: Sequence[int] = (), answer: Sequence[int] = (), **options: object) -> RowState:
    state = RowState(Options(**options), prompt)  # type: ignore[arg-type]
    for token in answer:
        state.note(token)
    return state


def reference(logits_V: Tensor, options: Options, seen: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The distribution that `generate.choose` draws from: what it hands to torch.multinomial, by token."""
    found: list[Tensor] = []

    def watch(weight_V: Tensor, count: int, generator: torch.Generator) -> Tensor:
        found.append(weight_V / weight_V.sum())
        return torch.zeros(1, dtype=torch.int64)

    monkeypatch.setattr(torch, "multinomial", watch)
    order, real_sort = [], Tensor.sort

    def sort(self: Tensor, **how: object) -> object:
        result = real_sort(self, **how)  # type: ignore[arg-type]
        order.append(result[1])
        return result

    monkeypatch.setattr(Tensor, "sort", sort)
    token = generate.choose(logits_V, options, seen, torch.Generator())
    monkeypatch.undo()
    if not found:
        return torch.nn.functional.one_hot(torch.tensor(token), len(logits_V)).float()
    return torch.zeros_like(logits_V).scatter_(0, order[0], found[0])


SETTINGS = [
    {"temperature": 0},
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"temperature": 1e-4},
    {"temperature": 5.0},
    {"temperature": 0.9, "top_k": 1},
    {"temperature": 0.9, "top_k": 40},
    {"temperature": 1.3, "top_k": 300},
    {"temperature": 1.0, "top_k": 5000},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 3.0, "top_p": 0.99},
    {"temperature": 20.0, "top_p": 0.95},
    {"temperature": 1.0, "top_p": 1e-6},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 2.0, "min_p": 1.0},
    {"temperature": 1.0, "top_k": 50, "top_p": 0.8, "min_p": 0.01},
    {"temperature": 0.8, "repetition_penalty": 1.3},
    {"temperature": 0, "repetition_penalty": 1.3},
    {"temperature": 0.8, "repetition_penalty": 0.7, "top_p": 0.7},
]


@pytest.mark.parametrize("digits", [None, 0, 1])
@pytest.mark.parametrize("vocab", [7, 300, 513, 9000])
def test_the_distribution_is_that_of_generate(vocab: int, digits: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    x_RV = logits(len(SETTINGS), vocab, seed=vocab, digits=digits)
    prompt, answer = [1, 2, 3, 3], [5, 1, 6]
    rows = [row(prompt, answer, **options) for options in SETTINGS]
    p_RV = distributions(x_RV, rows)
    for p_V, logits_V, state in zip(p_RV, x_RV, rows, strict=True):
        expected_V = reference(logits_V, state.options, prompt + answer, monkeypatch)
        # `generate` loses the tail of a top_p of 1 once the running sum rounds to 1; here it stays.
        lost_V = (expected_V == 0) & (p_V > 0)
        assert float(p_V[lost_V].sum()) < (2e-6 if state.options.top_p == 1 else 1e-30), state.options
        torch.testing.assert_close(p_V[~lost_V], expected_V[~lost_V], rtol=4e-6, atol=0)


@PROPERTY
@given(
    st.integers(0, 10**6), st.sampled_from([5, 250, 700, 5000]), st.sampled_from([0.1, 1.0, 10.0]), st.integers(0, 900),
    st.floats(0.01, 1), st.floats(0, 1), st.sampled_from([None, 0, 1]),
)  # fmt: skip
def test_filters_keep_what_a_full_sort_keeps(
    seed: int, vocab: int, spread: float, top_k: int, top_p: float, min_p: float, digits: int | None
) -> None:
    p_RV = torch.softmax(logits(2, vocab, seed=seed, spread=spread, digits=digits), dim=-1)
    kept_RV = keep_likely(p_RV, [top_k] * 2, [top_p] * 2, [min_p] * 2)
    for p_V, kept_V in zip(p_RV, kept_RV, strict=True):
        order = np.argsort(-p_V.numpy(), kind="stable")
        p = p_V.numpy()[order]
        before = np.cumsum(p, dtype=np.float64) - p
        sure = (before < top_p - 1e-6) & (p >= np.float32(min_p) * p[0])
        doubtful = (abs(before - top_p) <= 1e-6) & (p >= np.float32(min_p) * p[0])
        cut = top_k or vocab
        sure[cut:] = doubtful[cut:] = False
        sure[0] = True
        kept = kept_V.numpy()[order] > 0
        assert (kept | doubtful)[sure & (p > 0)].all()
        assert not kept[~(sure | doubtful)].any()
        assert kept_V.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("vocab", [1, 2, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1, 1000, 4 * BLOCK])
def test_the_likeliest_is_the_first_of_the_largest(vocab: int) -> None:
    x_RV = logits(50, vocab, seed=3, digits=0)
    x_RV[0] = 0
    x_RV[1] = -math.inf
    x_RV[1, -1] = 0
    assert likeliest(x_RV).tolist() == [int(np.argmax(x_V)) for x_V in x_RV.numpy()]


@pytest.mark.parametrize("vocab", [1, 5, BLOCK, BLOCK + 1, 1000])
def test_drawing_inverts_the_running_sum(vocab: int) -> None:
    weight_V = torch.rand(vocab, generator=torch.Generator().manual_seed(1))
    weight_V[1::3] = 0
    edges = np.concatenate([[0], np.cumsum(weight_V.double().numpy())]) / float(weight_V.double().sum())
    wanted = [token for token in range(vocab) if weight_V[token] > 0]
    for share in (0.01, 0.5, 0.99):
        uniform = [edges[t] + share * (edges[t + 1] - edges[t]) for t in wanted]
        assert draw(weight_V.expand(len(wanted), vocab), uniform).tolist() == wanted


@PROPERTY
@given(
    st.lists(st.sampled_from([0.0, 1e-38, 1e-7, 0.1, 1.0, 3.0]), min_size=1, max_size=600).filter(any),
    st.sampled_from([0.0, 1e-17, 0.5, 1 - 2**-53]) | st.floats(0, 1, exclude_max=True),
)
def test_a_weight_of_nought_is_never_drawn(weights: list[float], uniform: float) -> None:
    token = int(draw(torch.tensor([weights]), [uniform]))
    assert weights[token] > 0


def test_drawn_tokens_follow_the_distribution() -> None:
    count, vocab = 40_000, 1000
    x_V = logits(1, vocab, seed=5, spread=1.5)[0]
    state = row(temperature=0.8, seed=11)
    p_V = distributions(x_V[None], [state])[0].double().numpy()
    tokens: list[int] = []
    for _ in range(count // 500):
        tokens += choose(x_V.expand(500, vocab), [state] * 500)[0]
    seen_V = np.bincount(tokens, minlength=vocab)
    common = p_V * count >= 5
    seen = [*seen_V[common], seen_V[~common].sum()]
    expected = np.array([*p_V[common], p_V[~common].sum()])
    assert chisquare(seen, expected / expected.sum() * count).pvalue > 1e-4


def test_greedy_rows_take_the_likeliest() -> None:
    x_RV = logits(9, 1300, seed=2)
    tokens, notes = choose(x_RV, [row(temperature=0)] * 9)
    assert tokens == x_RV.argmax(-1).tolist()
    assert notes == [PLAIN] * 9


MIXED = [
    {"temperature": 0},
    {"temperature": 1.0, "seed": 1},
    {"temperature": 0.7, "seed": 2, "logprobs": 3},
    {"temperature": 0.9, "seed": 3, "top_p": 0.9},
    {"temperature": 4.0, "seed": 4, "top_p": 0.97},
    {"temperature": 1.0, "seed": 5, "top_k": 20, "frequency_penalty": 1.0},
    {"temperature": 0, "repetition_penalty": 1.5, "logprobs": 0},
    {"temperature": 1.0, "seed": 7, "logit_bias": {4: 5.0, 9: -100.0}, "presence_penalty": -1.0},
    {"temperature": 1.0, "seed": 8, "min_p": 0.02, "logprobs": 20},
]


@pytest.mark.parametrize("vocab", [300, 6000])
def test_a_row_is_the_same_in_any_company(vocab: int) -> None:
    x_RV = logits(len(MIXED), vocab, seed=1, digits=2)

    def states() -> list[RowState]:
        return [row([1, 2], [3, 4, 4], **options) for options in MIXED]

    together = choose(x_RV, states())
    alone = [choose(x_RV[r : r + 1], [state]) for r, state in enumerate(states())]
    assert together == ([t for tokens, _ in alone for t in tokens], [n for _, notes in alone for n in notes])
    order = [5, 0, 8, 3, 2, 7, 1, 4, 6]
    mixed = choose(x_RV[order], [states()[r] for r in order])
    assert mixed == ([together[0][r] for r in order], [together[1][r] for r in order])
    p_RV = distributions(x_RV, states())
    for r, state in enumerate(states()):
        assert torch.equal(distributions(x_RV[r : r + 1], [state])[0], p_RV[r])


def test_the_same_seed_repeats_and_another_does_not() -> None:
    x_RV = logits(1, 500, seed=4)

    def answer(seed: int) -> list[int]:
        state = row(temperature=1.0, seed=seed)
        return [choose(x_RV, [state])[0][0] for _ in range(20)]

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


def test_greedy_rows_use_no_random_numbers() -> None:
    state = row(temperature=0)
    choose(logits(1, 50), [state])
    assert state.uniform() == row(temperature=0).uniform()


def test_presence_and_frequency_count_the_answer_only() -> None:
    x_RV = logits(1, 10, seed=3)
    state = row([1, 2], [3, 4, 4], temperature=1.0, presence_penalty=0.5, frequency_penalty=0.25)
    expected_V = x_RV[0].clone()
    expected_V[3] -= 0.5 + 0.25
    expected_V[4] -= 0.5 + 2 * 0.25
    torch.testing.assert_close(distributions(x_RV, [state])[0], expected_V.softmax(-1))


def test_guesses_count_as_the_end_of_the_answer() -> None:
    x_RV = logits(2, 100, seed=3)
    options = {"temperature": 1.0, "presence_penalty": 0.5, "frequency_penalty": 0.25, "repetition_penalty": 1.2}
    guessed = distributions(x_RV, [row([1, 2], [3], **options)] * 2, [[3, 7, 7], []])
    noted = distributions(x_RV, [row([1, 2], [3, 3, 7, 7], **options), row([1, 2], [3], **options)])
    assert torch.equal(guessed, noted)


def test_many_tokens_are_all_counted() -> None:
    answer = [t for t in range(1000) for _ in range(t % 3)]
    x_RV = torch.zeros(1, 1000)
    p_V = distributions(x_RV, [row((), answer, temperature=1.0, frequency_penalty=1.0)])[0]
    expected_V = torch.softmax(-torch.tensor([float(t % 3) for t in range(1000)]), dim=-1)
    torch.testing.assert_close(p_V, expected_V)


def test_bias_is_added_after_penalties() -> None:
    x_RV = torch.tensor([[1.0, 2.0, 3.0]])
    state = row([2], temperature=1.0, repetition_penalty=2.0, logit_bias={2: 1.0, 0: -100.0})
    torch.testing.assert_close(distributions(x_RV, [state])[0], torch.tensor([-99.0, 2.0, 2.5]).softmax(-1))
    assert choose(x_RV, [row(temperature=0, logit_bias={0: 50.0})])[0] == [0]


def test_the_logits_stay_as_they_were() -> None:
    x_RV = logits(len(MIXED), 400)
    before = x_RV.clone()
    choose(x_RV, [row([1], [2], **options) for options in MIXED])
    assert torch.equal(x_RV, before)


def test_choosing_counts_nothing() -> None:
    state = row(temperature=0, frequency_penalty=2.0)
    x_RV = torch.tensor([[1.0, 0.0]])
    assert [choose(x_RV, [state])[0] for _ in range(2)] == [[0], [0]]
    state.note(0)
    assert choose(x_RV, [state])[0] == [1]


def test_logprobs_are_the_models_own() -> None:
    x_RV = logits(3, 700, seed=9)
    expected_RV = x_RV.log_softmax(-1)
    options = {"top_k": 5, "logit_bias": {3: 9.0}, "presence_penalty": 1.0}
    rows = [row((), [4], temperature=t, logprobs=n, **options) for t, n in ((0, 4), (0.3, 20), (2.0, None))]
    tokens, notes = choose(x_RV, rows)
    for r, count in ((0, 4), (1, 20)):
        assert notes[r].logprob == pytest.approx(float(expected_RV[r, tokens[r]]), abs=1e-5)
        values, columns = expected_RV[r].topk(count)
        assert [t for t, _ in notes[r].top] == columns.tolist()
        assert [p for _, p in notes[r].top] == pytest.approx(values.tolist(), abs=1e-5)
    assert notes[2] == PLAIN
    assert choose(x_RV[:1], [row(temperature=0, logprobs=0)])[1][0].top == ()
    assert len(choose(torch.zeros(1, 5), [row(temperature=0, logprobs=20)])[1][0].top) == 5


def test_a_bias_outside_the_vocabulary_is_refused() -> None:
    check_vocabulary(Options(logit_bias={0: 1.0, 9: 1.0}), 10)
    with pytest.raises(ServeError, match="token 10, and the vocabulary has 10"):
        check_vocabulary(Options(logit_bias={10: 1.0}), 10)
