"""A small corpus of two sources, built once: stories (text, 2 epochs) and talks (chat, 4 epochs)."""

import json
import random
from pathlib import Path

import pytest
from data_helpers import make_recipe, sentence

from moesaic.data import DataFolder, build_data
from moesaic.recipe import Recipe


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    with (folder / "stories.jsonl").open("w") as file:
        for _ in range(150):
            file.write(json.dumps({"text": sentence(rng, rng.randrange(3, 120))}) + "\n")
    with (folder / "talks.jsonl").open("w") as file:
        for _ in range(60):
            turns = [
                {"role": ("user", "assistant")[i % 2], "content": sentence(rng, rng.randrange(1, 12))} for i in range(6)
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    return folder


@pytest.fixture(scope="session")
def recipe(corpus: Path) -> Recipe:
    return make_recipe(
        [
            {"name": "stories", "path": str(corpus / "stories.jsonl"), "epochs": 2, "licence": "CC0-1.0"},
            {
                "name": "talks",
                "path": str(corpus / "talks.jsonl"),
                "kind": "chat",
                "epochs": 4,
                "licence": "MIT",
            },
        ],
        dedup_threshold=0.0,
    )


@pytest.fixture(scope="session")
def folder(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    return build_data(recipe, tmp_path_factory.mktemp("home"))
