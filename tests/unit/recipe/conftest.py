"""A small recipe with two kinds of sources and three stages."""

from typing import Any

import pytest

from moesaic.recipe import Recipe, check_recipe


def tree() -> dict[str, Any]:
    """Plain values of the recipe, fresh each time."""
    stage = {"tokens": 4096, "seq_len": 64, "batch": [{"tokens": 256}]}
    return {
        "name": "tiny",
        "model": {"vocab_size": 512, "d_model": 64, "n_layers": 4, "n_heads": 4, "head_dim": 16, "d_ff": 64},
        "data": {
            "sources": [
                {"name": "prose", "path": "/data/prose", "epochs": 2},
                {"name": "code", "kind": "code", "path": "/data/code", "epochs": 4},
                {"name": "talk", "kind": "chat", "path": "/data/talk.jsonl", "epochs": 3},
            ]
        },
        "stages": [
            {"name": "pretrain", "sources": ["prose", "code", "talk"], **stage},
            {"name": "extend", "sources": ["prose"], **stage, "rope_theta": 40_000},
            {"name": "instruct", "sources": ["talk"], "loss_on": "assistant", **stage},
        ],
    }


@pytest.fixture
def plain() -> dict[str, Any]:
    return tree()


@pytest.fixture
def recipe() -> Recipe:
    return check_recipe(tree(), "test")
