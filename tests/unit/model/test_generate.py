"""Generation: the cache changes nothing, settings mean what they say, and wrong calls explain themselves."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.errors import ModelError
from moesaic.model import SamplingSettings, Transformer, generate_tokens, initialise
from moesaic.model.generate import PREFILL_CHUNK, choose
from moesaic.recipe import Model

VOCAB = 61


def build(**changes: object) -> Transformer:
    values = {
        "vocab_size": VOCAB,
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "head_dim": 16,
        "d_ff": 32,
        "context": 64,
    }
    model = Transformer(Model.model_validate(values | {"n_experts": 4, "init_std": 0.3} | changes))
    initialise(model, seed=1)
    return model


def without_cache(model: Transformer, prompt: list[int], new: int) -> list[int]:
    """Greedy continuation, the whole sequence anew for each token."""
    tokens = list(prompt)
    for _ in range(new):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("n_experts", [1, 4])
def test_the_cache_changes_nothing(kv_heads: int, n_experts: int) -> None:
    model = build(n_kv_heads=kv_heads, n_experts=n_experts, top_k=min(2, n_experts))
    prompt = [5, 9, 2, 44]
    greedy = SamplingSettings(temperature=0, max_tokens=20)
    assert [s.token for s in generate_tokens(model, prompt, greedy)] == without_cache(model, prompt, 20)


def test_a_prompt_longer_than_a_prefill_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PREFILL_CHUNK > 7
    monkeypatch.setattr("moesaic.model.generate.PREFILL_CHUNK", 7)
    model, prompt = build(), list(range(1, 31))
    greedy = SamplingSettings(temperature=0, max_tokens=5)
    assert [s.token for s in generate_tokens(model, prompt, greedy)] == without_cache(model, prompt, 5)


def test_same_seed_same_text_other_seed_other_text() -> None:
    model = build()

    def run(seed: int) -> list[int]:
        return [s.token for s in generate_tokens(model, [1], SamplingSettings(temperature=1, seed=seed, max_tokens=30))]

    torch.manual_seed(99)  # the global generator plays no part
    first = run(0)
    torch.manual_seed(1)
    assert run(0) == first
    assert run(1) != first


def test_ends_at_a_stop_token_and_says_so() -> None:
    model = build()
    plain = SamplingSettings(temperature=0, max_tokens=20)
    tokens = [s.token for s in generate_tokens(model, [3, 4], plain)]
    stop = tokens[6]
    steps = list(generate_tokens(model, [3, 4], SamplingSettings(temperature=0, max_tokens=20, stop_ids=(stop,))))
    assert [s.token for s in steps] == tokens[: tokens.index(stop) + 1]
    assert [s.finish_reason for s in steps] == [None] * (len(steps) - 1) + ["stop"]


@pytest.mark.parametrize(("prompt", "asked", "given"), [(10, 5, 5), (60, 100, 4), (63, 9, 1)])
def test_length_is_limited_by_the_request_and_by_the_context(prompt: int, asked: int, given: int) -> None:
    steps = list(generate_tokens(build(), [1] * prompt, SamplingSettings(max_tokens=asked)))
    assert len(steps) == given
    assert steps[-1].finish_reason == "length"


def test_the_experts_of_each_token_are_those_its_router_chose() -> None:
    model, prompt = build(), [3, 4, 30, 17]
    greedy = SamplingSettings(temperature=0, max_tokens=4)
    steps = list(generate_tokens(model, prompt, greedy, show_experts=True))
    chosen: list[torch.Tensor] = []
    hooks = [
        layer.router.register_forward_hook(lambda m, i, routing: chosen.append(routing.experts_TK))
        for layer in model.layers
    ]
    with torch.no_grad():
        model(torch.tensor([prompt + [s.token for s in steps[:-1]]]))
    for hook in hooks:
        hook.remove()
    whole = torch.stack(chosen, dim=1)  # [tokens, layers, k]
    assert not torch.equal(whole[0], whole[3])  # else the wrong position would go unnoticed
    assert [s.experts for s in steps] == [tuple(map(tuple, row)) for row in whole[3:].tolist()]
    assert next(iter(generate_tokens(model, [3], SamplingSettings()))).experts is None
    assert not model.layers[0].router._forward_hooks


def test_the_callers_autograd_mode_is_left_alone_between_steps() -> None:
    model = build()
    for _ in generate_tokens(model, [1], SamplingSettings(max_tokens=2)):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt is empty"),
        ([1] * 64, "prompt has 64 tokens and the model's context 64"),
        ([1] * 1000, "shorten the prompt to at most 63 tokens"),
        ([VOCAB], f"token {VOCAB} is not in the vocabulary"),
        ([-1], "token -1 is not in the vocabulary"),
    ],
)
def test_bad_prompts_are_refused_before_anything_runs(prompt: list[int], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        generate_tokens(build(), prompt, SamplingSettings())


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"repetition_penalty": math.nan},
        {"max_tokens": 0},
        {"seed": -1},
    ],
)
def test_each_setting_is_checked_and_named(change: dict[str, float]) -> None:
    with pytest.raises(ModelError, match=f"{next(iter(change))} = .* out of range"):
        SamplingSettings(**change)


def allowed(logits: torch.Tensor, **options: float) -> set[int]:
    """Tokens that can be drawn."""
    generator = torch.Generator().manual_seed(0)
    chosen = SamplingSettings(temperature=options.pop("temperature", 1.0), **options)
    return {choose(logits, chosen, [0], generator) for _ in range(300)}


def test_top_k_top_p_and_min_p_leave_out_what_they_say() -> None:
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
    assert allowed(logits) == {0, 1, 2, 3}
    assert allowed(logits, top_k=2) == {0, 1}
    assert allowed(logits, top_p=0.7) == {0, 1}
    assert allowed(logits, top_p=0.8) == {0, 1, 2}
    assert allowed(logits, top_p=0.01) == {0}
    assert allowed(logits, min_p=0.4) == {0, 1}
    assert allowed(logits, min_p=1) == {0}
    assert allowed(logits, temperature=0.01) == {0}


def test_repetition_penalty_pushes_away_what_was_said() -> None:
    logits = torch.tensor([2.0, 1.5, -1.0])
    greedy = SamplingSettings(temperature=0, repetition_penalty=2)
    generator = torch.Generator()
    assert choose(logits, greedy, [2], generator) == 0
    assert choose(logits, greedy, [0], generator) == 1
    assert choose(torch.tensor([-1.0, -1.5]), greedy, [0], generator) == 1  # negative ones are multiplied


def test_the_penalty_covers_prompt_and_answer() -> None:
    steps = generate_tokens(build(), [1, 2], SamplingSettings(temperature=0, repetition_penalty=1e6, max_tokens=20))
    tokens = [1, 2, *(s.token for s in steps)]
    assert len(set(tokens)) == len(tokens)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=40),
    st.floats(0, 3),
    st.integers(0, 50),
    st.floats(0.01, 1),
    st.floats(0, 1),
)
def test_some_token_can_always_be_drawn(logits: list[float], t: float, k: int, p: float, m: float) -> None:
    chosen = SamplingSettings(temperature=t, top_k=k, top_p=p, min_p=m, repetition_penalty=1.1)
    assert 0 <= choose(torch.tensor(logits), chosen, [0], torch.Generator().manual_seed(0)) < len(logits)


def test_frequencies_follow_the_probabilities() -> None:
    p = torch.tensor([0.6, 0.3, 0.1])
    generator = torch.Generator().manual_seed(0)
    draws = [choose(p.log(), SamplingSettings(temperature=1), [0], generator) for _ in range(4000)]
    share = torch.bincount(torch.tensor(draws), minlength=3) / 4000
    torch.testing.assert_close(share, p, rtol=0, atol=0.03)
