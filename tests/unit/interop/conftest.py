"""A tokenizer of our own, and model folders with it."""

from pathlib import Path

import pytest
from interop_helpers import small

from moesaic.data import Tokenizer, train_tokenizer
from moesaic.interop import save_model

TEXTS = ["user\nassistant\nsystem\nhello there, how are you? def f(x):\n    return x + 12\n"] * 5


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, 300).save(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_folder)


@pytest.fixture
def dense_folder(tokenizer_folder: Path, tmp_path: Path) -> Path:
    """A dense Llama with a tokenizer and a card."""
    save_model(small(), tmp_path / "dense", tokenizer_folder=tokenizer_folder, card="---\nlicense: mit\n---\n# Small\n")
    return tmp_path / "dense"
