"""The engine gives what one sequence at a time gives, whatever stands beside it; and what transformers gives."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from moesaic.errors import ModelError
from moesaic.evals import Likelihood, Request, batches, log_likelihoods, log_likelihoods_reference
from moesaic.evals.batches import SharedBatch, plan
from moesaic.interop import load_model
from moesaic.model import Transformer

VOCAB = 512
DENSE = tiny.model(vocab_size=VOCAB, n_experts=1, top_k=1, n_kv_heads=2)
SPARSE = tiny.model(vocab_size=VOCAB)

ids = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12).map(tuple)
contexts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=90).map(tuple)  # the models read 64


def assert_equal(found: Sequence[Likelihood], wanted: Sequence[Likelihood]) -> None:
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, abs=1e-5, rel=1e-6)
        assert (ours.greedy, ours.cut) == (theirs.greedy, theirs.cut)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(contexts, st.lists(ids, min_size=1, max_size=5)), min_size=1, max_size=6),
    st.sampled_from([DENSE, SPARSE]),
    st.sampled_from([16, 100, 2048]),
    st.sampled_from([0, 32]),
)
def test_it_equals_one_sequence_at_a_time(
    items: list[tuple[tuple[int, ...], list[tuple[int, ...]]]], model: Transformer, tokens_a_pass: int, overhead: int
) -> None:
    """Mixed lengths, equal requests, choices of one token, contexts that are cut; with and without shared contexts."""
    requests = [Request(context, choice) for context, choices in items for choice in [*choices, choices[0]]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "PASS", overhead)  # 0: share wherever a single token is saved
        found = log_likelihoods(model, requests, tokens_a_pass=tokens_a_pass)
    assert_equal(found, log_likelihoods_reference(model, requests))


def test_greedy_is_told_for_the_likeliest_continuation_and_no_other() -> None:
    context = [3, 1, 4]
    best = []
    for _ in range(3):
        with torch.inference_mode():
            best.append(int(SPARSE(torch.tensor([[*context, *best]]))[0, -1].argmax()))
    first, last = log_likelihoods(SPARSE, [Request(context, best), Request(context, [*best[:-1], best[-1] ^ 1])])
    assert (first.greedy, last.greedy) == (True, False)
    assert first.log_likelihood > last.log_likelihood


def test_choices_of_one_token_share_one_pass_over_the_context() -> None:
    (batch,) = plan([((1, 2, 3), (7,)), ((1, 2, 3), (8,)), ((1, 2, 3), (7,))], 2048)
    assert batch.tokens == 3


def test_a_context_that_is_shared_is_computed_once() -> None:
    question = tuple(range(100))
    requests = [((*question, n), (choice, choice, choice)) for n in range(4) for choice in range(5)]
    found = plan(requests, 2048)
    assert all(isinstance(batch, SharedBatch) for batch in found)
    # 4 contexts of 101 tokens, of which the last is computed with each choice and its first two tokens.
    assert sum(batch.tokens for batch in found) == 4 * 100 + 20 * 3


@pytest.mark.parametrize("model", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_every_choice_continues_its_own_question(model: Transformer) -> None:
    """Questions of two lengths in one batch, choices of several lengths in several passes."""
    draw = torch.Generator().manual_seed(3)
    requests = [
        Request(torch.randint(0, VOCAB, (40 + n % 2,), generator=torch.Generator().manual_seed(n)).tolist(), choice)
        for n in range(8)
        for choice in torch.randint(0, VOCAB, (5, 1 + n % 4), generator=draw).tolist()
    ]
    found = plan([(tuple(r.context), tuple(r.continuation)) for r in requests], 2048)
    assert any(isinstance(batch, SharedBatch) and len(batch.groups) > 2 for batch in found)
    assert_equal(log_likelihoods(model, requests), log_likelihoods_reference(model, requests))


def test_a_cut_context_keeps_its_end() -> None:
    long = [*range(100, 200)]
    cut, short = log_likelihoods(SPARSE, [Request(long, [5, 6]), Request(long[-63:], [5, 6])])
    assert cut.log_likelihood == pytest.approx(short.log_likelihood, abs=1e-5)
    assert (cut.cut, short.cut) == (True, False)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([], [1]), "give each at least one token"),
        (Request([1], []), "give each at least one token"),
        (Request([1], [2] * 65), "a continuation has 65 tokens and the model's context 64"),
        (Request([1], [VOCAB]), f"token {VOCAB} is not in the vocabulary of {VOCAB}"),
    ],
    ids=["no context", "no continuation", "too long", "a foreign token"],
)
def test_a_request_that_cannot_be(request_: Request, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        log_likelihoods(SPARSE, [request_])


def test_it_equals_transformers(eval_folder: Path) -> None:
    """Per choice, and so in what is chosen."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(eval_folder, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(0, 320, (n,), generator=generator).tolist()  # noqa: E731
    items = [(draw(5 + 3 * n), [draw(1 + (n + k) % 6) for k in range(4)]) for n in range(12)]
    found = log_likelihoods(load_model(eval_folder), [Request(c, choice) for c, cs in items for choice in cs])
    wanted = []
    for context, choices in items:
        for choice in choices:
            whole = torch.tensor([[*context, *choice]])
            with torch.inference_mode():
                log_p = theirs(whole[:, :-1]).logits[0, len(context) - 1 :].float().log_softmax(-1)
            wanted.append(float(log_p.gather(1, whole[0, len(context) :, None]).sum()))
    ours = torch.tensor([f.log_likelihood for f in found]).view(12, 4)
    assert torch.allclose(ours, torch.tensor(wanted).view(12, 4), rtol=0, atol=1e-3)
    assert torch.equal(ours.argmax(1), torch.tensor(wanted).view(12, 4).argmax(1))
