"""The model in one piece: with several processes a copy in host memory, which training does not touch."""

import torch

from moesaic.model import Transformer, initialise
from moesaic.parallel.engine import Engine
from moesaic.parallel.world import World
from moesaic.recipe import Layout
from moesaic.recipe.layout_text import parse_layout
from moesaic.train.verify import MODEL
from ranks import run_ranks

CONFIG = MODEL.model_copy(update={"n_layers": 2})


def gathered(rank: int, text: str) -> bool:
    engine = Engine(CONFIG, parse_layout(text), World(rank, 2, torch.device("cpu")))
    engine.initialise(1)
    whole = engine.whole()
    if whole is None:
        return rank == 1
    expected = Transformer(CONFIG)
    initialise(expected, 1)
    engine.fill(lambda name, shape: torch.zeros(shape))
    return all(torch.equal(p, e) for p, e in zip(whole.parameters(), expected.parameters(), strict=True))


def test_on_several_processes_it_is_a_copy() -> None:
    for text in ("dp=2,zero=0", "dp=2", "pp=2", "tp=2,ep=2"):
        assert run_ranks(gathered, 2, text) == [True, True], text


def test_with_one_process_it_shares_its_weights() -> None:
    engine = Engine(CONFIG, Layout(), World())
    engine.initialise(1)
    whole = engine.whole()
    assert whole is not None
    assert whole.norm.weight.data_ptr() == engine.weights()["norm.weight"].data_ptr()
