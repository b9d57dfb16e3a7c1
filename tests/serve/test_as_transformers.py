"""The engine's greedy answers are those of transformers, in fp32: a real model, and a random sparse one.

Where they part for the first time, the two likeliest tokens of transformers must be within `TIE` of each other in
logits: sums in another order decide then, and what follows has another beginning.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from engines import answers, engine
from moesaic.data import train_tokenizer
from moesaic.serve.local import LocalModel
from moesaic.serve.options import Options

TIE = 1e-3
NEW = 32
WAYS: dict[str, dict[str, Any]] = {
    "native": {"kernels": "native"},
    "torch": {"kernels": "torch"},
    "native, in pieces, with guesses": {"kernels": "native", "max_positions": 50, "draft": "lookup"},
}


def parts(theirs: Any, prompt: Sequence[int], ours: Sequence[int]) -> float | None:
    """How far apart their two likeliest tokens are where the answers part; None when they do not."""
    tokens = torch.tensor([[*prompt, *ours]])
    with torch.inference_mode():
        logits = theirs(tokens).logits[0, len(prompt) - 1 : -1]
    best = logits.argmax(dim=-1)
    for at, (token, wanted) in enumerate(zip(ours, best.tolist(), strict=True)):
        if token != wanted:
            first, second = logits[at].topk(2).values.tolist()
            return float(first - second)
    return None


def gaps(folder: Path, prompts: Sequence[Sequence[int]], **settings: Any) -> list[float | None]:
    """Ours against theirs, all prompts at once; of each, what `parts` says."""
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with engine(folder, **settings) as made:
        found = answers(made, prompts, Options(temperature=0, max_tokens=NEW))
    return [parts(theirs, p, ours) for p, ours in zip(prompts, found, strict=True)]


def agree(found: Sequence[float | None]) -> bool:
    """Nearly everywhere to the last token, and elsewhere up to a tie."""
    return all(gap is None or gap < TIE for gap in found) and sum(gap is None for gap in found) >= len(found) - 1


@pytest.mark.parametrize("way", WAYS)
def test_smollm2(way: str, smollm2: Path) -> None:
    """A real dense model with grouped queries, on chats and plain texts."""
    opened = LocalModel(smollm2)
    texts = ("The capital of France is", "def fibonacci(n):\n", "Once upon a time, in a small village by the sea,")
    chats = ("What is gravity?", "Write a poem about rain. Write a poem about rain. Write a poem about rain.")
    prompts = [opened.encode(t) for t in texts] + [opened.encode([{"role": "user", "content": c}]) for c in chats]
    found = gaps(smollm2, prompts, **WAYS[way])
    assert agree(found), found


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, written by transformers; spread enough that the router and the head have preferences."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, head_dim=16, num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=256,
        initializer_range=0.2, sliding_window=None, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("mixtral")
    MixtralForCausalLM(config).save_pretrained(folder)
    train_tokenizer(["what is there to say"] * 9, 300).save(folder)
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_a_random_mixtral(way: str, mixtral: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 300, (n,), generator=generator).tolist() for n in (1, 7, 33, 60, 90, 121)]
    found = gaps(mixtral, prompts, **WAYS[way])
    assert agree(found), found
