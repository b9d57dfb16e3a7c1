"""A model folder small enough to make in every test session: random weights, a real tokenizer."""

from pathlib import Path

import pytest
import torch

from moesaic.data import train_tokenizer
from moesaic.interop import save_model
from moesaic.model import Transformer, initialise
from moesaic.recipe import Model
from moesaic.serve.local import LocalModel


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(["user\nassistant\nsystem\nhello there, how are you?"] * 5, 300)
    tokenizer.save(home / "tokenizer")
    config = {"vocab_size": 300, "d_model": 32, "n_layers": 2, "n_heads": 2, "head_dim": 16, "d_ff": 32}
    model = Transformer(Model.model_validate(config | {"n_experts": 4, "context": 128, "init_std": 0.3}))
    initialise(model, seed=0)
    save_model(model, home / "model", tokenizer_folder=home / "tokenizer", dtype=torch.float32)
    return home / "model"


@pytest.fixture
def local(model_folder: Path) -> LocalModel:
    return LocalModel(model_folder)
