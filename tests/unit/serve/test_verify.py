"""Checking a draft's guesses: exact without leniency, bounded with it, and honest about the difference.

Legend: R rows, K guesses, N positions, M guesses of all rows, V vocabulary.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from moesaic.serve.options import Options
from moesaic.serve.sampling import RowState, choose, distributions
from moesaic.serve.verify import Verdict, draft_choose, output_distribution, verify

PROPERTY = settings(derandomize=True, deadline=None, max_examples=60)


def row(prompt: Sequence[int] = (), **options: object) -> RowState:
    return RowState(Options(**{"temperature": 1.0, **options}), prompt)  # type: ignore[arg-type]


class Scripted(RowState):
    """A row whose random numbers are given, so that a test can go through all of them."""

    def __init__(self, uniform: Sequence[float], **options: object) -> None:
        super().__init__(Options(**{"temperature": 1.0, **options}), ())  # type: ignore[arg-type]
        self._script = iter(uniform)

    def uniform(self) -> float:
        return next(self._script)


def normal(*shape: int, seed: int, spread: float = 1.5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * spread


def edge(low_side: object, decide: object) -> float:
    """Where `decide(u)` stops being `low_side`, by bisection; 0 or 1 if it is never or always so."""
    low, high = 0.0, 1.0
    for _ in range(45):
        middle = (low + high) / 2
        low, high = (middle, high) if decide(middle) == low_side else (low, middle)  # type: ignore[operator]
    return (low + high) / 2


def enumerated(p_V: Tensor, q_V: Tensor, leniency: float, *, certain: int | None = None) -> list[float]:
    """Exact distribution of `verify`'s first token: over all guesses and, by where results change, random numbers."""
    vocab = len(p_V)
    logits_NV = torch.stack([p_V.log(), torch.zeros(vocab)])
    q_MV = None if certain is not None else q_V[None]
    out = [0.0] * vocab

    def check(guess: int, *uniform: float) -> Verdict:
        return verify(logits_NV, [[guess]], q_MV, [Scripted([*uniform, 0.5], leniency=leniency)])[0]

    for guess in range(vocab) if certain is None else [certain]:
        share = float(q_V[guess]) if certain is None else 1.0
        if share == 0:
            continue
        accepted = edge(1, lambda u, g=guess: check(g, u, 0.5).accepted)
        out[guess] += share * accepted
        if accepted > 1 - 1e-9:
            continue
        rejected = accepted + (1 - accepted) / 2
        edges = [0.0]
        for token in range(vocab):  # the running sum is inverted, so tokens rise with the random number
            edges.append(edge(True, lambda u, t=token, g=guess, r=rejected: check(g, r, u).tokens[0] <= t))
        for token in range(vocab):
            out[token] += share * (1 - accepted) * (edges[token + 1] - edges[token])
    return out


TINY = [
    ([0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4]),
    ([0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1]),
    ([0.05, 0.15, 0.8, 0.0], [0.05, 0.15, 0.8, 0.0]),
    ([0.0, 1.0, 0.0, 0.0], [0.5, 0.0, 0.5, 0.0]),
    ([0.4, 0.1, 0.2, 0.3], [0.3, 0.4, 0.2, 0.1]),
]


@pytest.mark.parametrize("leniency", [0.0, 0.3, 0.9])
@pytest.mark.parametrize(("p", "q"), TINY)
def test_every_guess_and_every_random_number_give_the_stated_distribution(
    p: list[float], q: list[float], leniency: float
) -> None:
    p_V, q_V = torch.tensor(p), torch.tensor(q)
    out = enumerated(p_V, q_V, leniency)
    assert out == pytest.approx(output_distribution(p_V, q_V, leniency).tolist(), abs=1e-6)
    assert sum(out) == pytest.approx(1, abs=1e-6)
    if leniency == 0:
        assert out == pytest.approx(p, abs=1e-6)


@pytest.mark.parametrize("leniency", [0.0, 0.4])
@pytest.mark.parametrize("certain", [0, 1, 3])
def test_a_certain_guess_is_a_q_of_one(certain: int, leniency: float) -> None:
    p_V = torch.tensor([0.5, 0.3, 0.2, 0.0])
    q_V = torch.nn.functional.one_hot(torch.tensor(certain), 4).float()
    out = enumerated(p_V, q_V, leniency, certain=certain)
    assert out == pytest.approx(output_distribution(p_V, q_V, leniency).tolist(), abs=1e-6)
    if leniency == 0:
        assert out == pytest.approx(p_V.tolist(), abs=1e-6)


def chi_squared(tokens: Sequence[int], p_V: np.ndarray) -> float:
    """Probability of so much difference by chance; rare tokens together."""
    expected = p_V * len(tokens)
    seen = np.bincount(tokens, minlength=len(p_V))
    common = expected >= 5
    seen, expected = (np.array([*x[common], x[~common].sum()]) for x in (seen, expected))
    keep = expected > 0
    assert not seen[~keep].any()
    return float(chisquare(seen[keep], expected[keep] / expected[keep].sum() * len(tokens)).pvalue)


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 30, "min_p": 0.001}, {"leniency": 0.5}],
)
@pytest.mark.parametrize("lookup", [False, True])
def test_tokens_at_a_real_vocabulary_follow_the_distribution(options: dict[str, object], lookup: bool) -> None:
    count, batch, vocab = 8_000, 400, 1000
    model_V, draft_V = normal(vocab, seed=1), normal(vocab, seed=1) + normal(vocab, seed=2, spread=0.7)
    rows = [row(seed=seed, **options) for seed in range(batch)]
    p_V = distributions(model_V[None], rows[:1])[0]
    q_V = distributions(draft_V[None], rows[:1])[0]
    likely = int(p_V.argmax())
    tokens: list[int] = []
    for _ in range(count // batch):
        if lookup:
            guesses, q_RV = [likely] * batch, None
        else:
            guesses, q_RV = draft_choose(draft_V.expand(batch, vocab), rows, [()] * batch)
        verdicts = verify(model_V.expand(2 * batch, vocab), [[g] for g in guesses], q_RV, rows)
        tokens += [v.tokens[0] for v in verdicts]
        assert 0 < sum(v.accepted for v in verdicts) < batch
    if lookup:
        q_V = torch.nn.functional.one_hot(torch.tensor(likely), vocab).float()
    leniency = float(options.get("leniency", 0.0))  # type: ignore[arg-type]
    out_V = output_distribution(p_V.double(), q_V.double(), leniency).numpy()
    assert chi_squared(tokens, out_V) > 1e-4
    if leniency:
        assert chi_squared(tokens, p_V.double().numpy()) < 1e-4  # so many tokens do tell the difference


def test_three_guesses_follow_the_joint_distribution_of_the_model() -> None:
    """All answers of four tokens, the model's and the draft's next token depending on all before."""
    vocab, length, batch, rounds = 3, 4, 3000, 8
    prefixes = [p for n in range(length) for p in itertools.product(range(vocab), repeat=n)]
    model = {p: normal(vocab, seed=i) for i, p in enumerate(prefixes)}
    draft = {p: normal(vocab, seed=1000 + i) for i, p in enumerate(prefixes)}
    rows = [row(seed=seed) for seed in range(batch)]
    seen: list[int] = []
    for _ in range(rounds):
        guesses: list[list[int]] = [[] for _ in rows]
        q_KRV = []
        for _ in range(3):
            new, q_RV = draft_choose(torch.stack([draft[tuple(g)] for g in guesses]), rows, guesses)
            q_KRV.append(q_RV)
            guesses = [[*g, token] for g, token in zip(guesses, new, strict=True)]
        logits_NV = torch.stack([model[tuple(g[:k])] for g in guesses for k in range(4)])
        verdicts = verify(logits_NV, guesses, torch.stack(q_KRV, dim=1).flatten(0, 1), rows)
        answers = [list(v.tokens) for v in verdicts]
        assert {v.accepted for v in verdicts} == {0, 1, 2, 3}
        while short := [r for r, a in enumerate(answers) if len(a) < length]:  # go on without a draft
            new, _ = choose(torch.stack([model[tuple(answers[r])] for r in short]), [rows[r] for r in short])
            for r, token in zip(short, new, strict=True):
                answers[r].append(token)
        seen += [sum(t * vocab**i for i, t in enumerate(a)) for a in answers]
    joint = np.zeros(vocab**length)
    for answer in itertools.product(range(vocab), repeat=length):
        p = 1.0
        for n, token in enumerate(answer):
            p *= float(model[answer[:n]].double().softmax(-1)[token])
        joint[sum(t * vocab**i for i, t in enumerate(answer))] = p
    assert chi_squared(seen, joint) > 1e-4


weights = st.lists(st.sampled_from([0.0, 1e-3, 0.1, 0.5, 1.0, 7.0]) | st.floats(0, 1, width=32), min_size=6, max_size=6)


@PROPERTY
@given(weights.filter(any), weights.filter(any), st.floats(0, 0.99))
def test_no_token_becomes_likelier_than_leniency_allows(p: list[float], q: list[float], leniency: float) -> None:
    p_V, q_V = (torch.tensor(x, dtype=torch.float64) for x in (p, q))
    p_V, q_V = p_V / p_V.sum(), q_V / q_V.sum()
    out_V = output_distribution(p_V, q_V, leniency)
    assert (out_V <= p_V / (1 - leniency) + 1e-12).all()
    assert (out_V[p_V == 0] == 0).all()
    assert float(out_V.sum()) == pytest.approx(1)


@PROPERTY
@given(
    weights.filter(any), weights.filter(any), st.floats(0, 0.99), st.integers(0, 5), st.booleans(), st.floats(0, 0.999)
)
def test_the_shift_is_the_distance_of_the_output_from_the_model(
    p: list[float], q: list[float], leniency: float, guess: int, certain: bool, uniform: float
) -> None:
    p_V, q_V = torch.tensor(p), torch.tensor(q)
    p_V, q_V = p_V / p_V.sum(), q_V / q_V.sum()
    if certain:
        q_V = torch.nn.functional.one_hot(torch.tensor(guess), 6).float()
    state = Scripted([uniform, uniform], leniency=leniency)
    logits_NV = torch.stack([p_V.log(), torch.zeros(6)])
    verdict = verify(logits_NV, [[guess]], None if certain else q_V[None], [state])[0]
    out_V = output_distribution(p_V.double(), q_V.double(), leniency)
    distance = float((out_V - p_V.double()).abs().sum()) / 2
    assert verdict.notes[0].shift == pytest.approx(distance, abs=1e-5)
    assert p_V[verdict.tokens[0]] > 0  # whatever was guessed
    assert state.shift == verdict.notes[0].shift


def test_the_exact_rule_has_no_shift() -> None:
    rows = [row(seed=s) for s in range(50)]
    model_V, draft_V = normal(20, seed=1), normal(20, seed=2)
    guesses, q_RV = draft_choose(draft_V.expand(50, 20), rows, [()] * 50)
    for verdict in verify(model_V.expand(100, 20), [[g] for g in guesses], q_RV, rows):
        assert all(n.shift == 0 and not n.lenient for n in verdict.notes)
    assert {r.shift for r in rows} == {0.0}


def test_lenient_marks_what_the_exact_rule_rejects_with_the_same_random_number() -> None:
    p_V, q_V = torch.tensor([0.2, 0.8]), torch.tensor([0.8, 0.2])  # exact: 0.25; l = 0.5: 0.5
    logits_NV = torch.stack([p_V.log(), torch.zeros(2)])
    for uniform, accepted, lenient in ((0.24, 1, False), (0.26, 1, True), (0.49, 1, True), (0.51, 0, False)):
        verdict = verify(logits_NV, [[0]], q_V[None], [Scripted([uniform, 0.5], leniency=0.5)])[0]
        assert (verdict.accepted, verdict.notes[0].lenient) == (accepted, lenient)
        assert verdict.notes[0].drafted == bool(accepted)
        assert verdict.notes[-1].drafted is False
        assert len(verdict.tokens) == len(verdict.notes) == accepted + 1


def test_a_draft_that_agrees_is_never_rejected() -> None:
    options = [{}, {"top_p": 0.8}, {"temperature": 0.5, "top_k": 9}, {"presence_penalty": 1.5}, {"temperature": 0}]
    rows = [row([1, 2], seed=s, **o) for s, o in enumerate(options * 20)]
    x_V = normal(600, seed=4)
    guesses: list[list[int]] = [[] for _ in rows]
    q_KRV = []
    for _ in range(3):
        new, q_RV = draft_choose(x_V.expand(len(rows), 600), rows, guesses)
        assert q_RV is not None
        q_KRV.append(q_RV)
        guesses = [[*g, t] for g, t in zip(guesses, new, strict=True)]
    q_MV = torch.stack(q_KRV, dim=1).flatten(0, 1)
    verdicts = verify(x_V.expand(len(rows) * 4, 600), guesses, q_MV, rows)
    assert {v.accepted for v in verdicts} == {3}
    assert all(v.tokens[:3] == tuple(g) for v, g in zip(verdicts, guesses, strict=True))


def test_the_table_of_leniency() -> None:
    """A draft at a distance of 0.40 among 32 tokens, of a usual shape: what more leniency gives, and what it costs."""
    x_V, y_V = normal(32, seed=0, spread=1.0), normal(32, seed=10, spread=1.0)
    p_V = x_V.softmax(-1)

    def draft(share: float) -> Tensor:
        return (x_V + 4 * share * y_V).softmax(-1)

    q_V = draft(edge(True, lambda share: float((draft(share) - p_V).abs().sum() / 2) < 0.4))
    rows = ((0.0, 0.60, 0.0), (0.1, 0.62, 0.022), (0.25, 0.66, 0.064), (0.5, 0.77, 0.171), (0.7, 0.92, 0.322))
    for leniency, acceptance, shift in rows:
        state = Scripted([0.0, 0.5], leniency=leniency)
        found = verify(torch.stack([x_V, x_V]), [[int(p_V.argmax())]], q_V[None], [state])[0].notes[0].shift
        accepted = float(torch.minimum(q_V, p_V / (1 - leniency)).sum())
        assert found == pytest.approx(accepted - 0.6, abs=1e-5)  # acceptance is bought with shift, one for one
        assert accepted == pytest.approx(acceptance, abs=0.03)
        assert found == pytest.approx(shift, abs=0.03)
