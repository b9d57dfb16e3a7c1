"""Frozen weights on several ranks: names are those of the whole model, and a rank may train nothing."""

import pytest
import torch

from moesaic.errors import ModelError
from moesaic.parallel.engine import Engine
from moesaic.parallel.world import World
from moesaic.recipe import Layout, Optimizer
from moesaic.train.optimizer import build_optimizer, optimizer_state, set_learning_rate
from moesaic.train.verify import MODEL
from ranks import run_ranks

CONFIG = MODEL.model_copy(update={"n_layers": 2})
LAYOUT = Layout(pp=2, zero=0)


def engine_of(rank: int) -> Engine:
    engine = Engine(CONFIG, LAYOUT, World(rank, 2, torch.device("cpu")))
    engine.initialise(1)
    return engine


def refused(rank: int) -> str:
    with pytest.raises(ModelError) as error:
        engine_of(rank).freeze(["layer.*"])
    return str(error.value)


def test_a_glob_without_a_match_is_one_error_on_all_ranks() -> None:
    first, second = run_ranks(refused, 2)
    assert first == second
    assert "trainable = ['layer.*'] matches no parameter; names look like ['embedding', " in first


def trained(rank: int) -> tuple[list[str], list[str], float, int]:
    engine = engine_of(rank)
    chosen = engine.freeze(["norm.weight"])
    optimizer = build_optimizer(engine.named_parameters(), Optimizer(lr=1e-3))
    set_learning_rate(optimizer, 1e-3)
    engine.gradients.finish()
    engine.gradients.scale(0.5)
    before = [p.detach().clone() for _, p in engine.named_parameters()]
    optimizer.step()
    optimizer.zero_grad()
    assert all(torch.equal(p, b) for (n, p), b in zip(engine.named_parameters(), before, strict=True))
    state = optimizer_state(optimizer, engine.named_parameters(), engine.model_order)
    return chosen, list(state), engine.gradients.norm(), len(optimizer.param_groups)


def test_a_rank_that_trains_nothing_takes_part() -> None:
    (first, no_state, norm, groups), (second, state, same, _) = run_ranks(trained, 2)
    assert first == second == ["norm.weight"]
    assert (no_state, state) == ([], ["norm.weight"])
    assert norm == same == 0.0
    assert groups == 1
