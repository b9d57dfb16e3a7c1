"""What the data tests share: small recipes and sentences."""

import random
from typing import Any

from moesaic.recipe import Recipe, check_recipe

WORDS = [
    "the",
    "a",
    "river",
    "house",
    "seven",
    "window",
    "stone",
    "walks",
    "under",
    "light",
    "morning",
    "paper",
    "about",
    "because",
    "number",
    "train",
]


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words)).capitalize() + "."


def make_recipe(sources: list[dict[str, Any]], stage: dict[str, Any] | None = None, **data: Any) -> Recipe:
    stages = [{"name": "pretrain", "sources": [s["name"] for s in sources], "tokens": 10_000, "seq_len": 32}]
    stages[0] |= {"batch": [{"tokens": 32 * 4}]} | (stage or {})
    tree = {
        "name": "small",
        "model": {"vocab_size": 512, "d_model": 16, "n_layers": 1, "n_heads": 1, "d_ff": 16},
        "data": {"sources": sources, "min_chars": 1, "held_out": 0.1, **data},
        "stages": stages,
    }
    return check_recipe(tree, "test")
