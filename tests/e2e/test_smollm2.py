"""A real model: what SmolLM2 says here is what it says in transformers, dense and upcycled."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import moesaic
from moesaic.evals import compare_logits
from moesaic.interop import load_model, upcycle
from moesaic.serve.local import LocalModel

PROMPTS = ("The capital of France is", "def fibonacci(n):", "Once upon a time, 1234 ships")
TOKENS = 16


@pytest.fixture(scope="module")
def ours(smollm2: Path) -> LocalModel:
    return moesaic.load(smollm2)


def test_it_knows_something(ours: LocalModel) -> None:
    """Rows of queries and keys in the wrong order would give fluent nonsense, in every engine that reads the folder."""
    reply = ours.chat([{"role": "user", "content": "What is the capital of France?"}], temperature=0.0, max_tokens=24)
    assert "Paris" in reply.text
    assert reply.finish_reason == "stop"


def test_greedy_answers_and_token_ids_are_those_of_transformers(ours: LocalModel, smollm2: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(smollm2)
    assert words.eos_token == "<|im_end|>"
    for prompt in PROMPTS:
        ids = ours.encode(prompt)
        assert ids == words(prompt).input_ids
        steps = ours.steps(prompt, temperature=0.0, max_tokens=TOKENS, stop_ids=())
        wanted = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=TOKENS, eos_token_id=None)
        assert [s.token for s in steps] == wanted[0, len(ids) :].tolist()
    chat = [{"role": "user", "content": "Hello there!"}]
    rendered = words.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ours.encode(chat) == list(rendered)


def test_sixteen_experts_in_the_last_layers_change_no_logit(ours: LocalModel, smollm2: Path) -> None:
    """By more than fp32 does: 1e-5 of the logits' spread, in which sums over 30 layers differ by their order."""
    dense = load_model(smollm2)
    sparse = upcycle(dense, 16, 2, layers=range(26, 30))
    difference = compare_logits(dense, sparse, ours.tokenizer, [PROMPTS[0] * 12, PROMPTS[1] * 12])
    assert difference.largest < 2e-5 * difference.scale
    assert difference.scale > 1
