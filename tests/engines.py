"""Engines for tests, and what they answer."""

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from moesaic.serve.engine import Delivery, Engine, EngineSettings
from moesaic.serve.local import LocalModel
from moesaic.serve.options import Options

LIMIT_S = 60.0
GREEDY = Options(temperature=0, max_tokens=24)


def answers(
    engine: Engine, asked: Sequence[Sequence[int]], options: Options = GREEDY, alone: bool = True
) -> list[list[int]]:
    """All at once; with nobody else there, the scheduler's invariants hold afterwards and nothing is left."""
    box: queue.Queue[Delivery] = queue.Queue()
    numbers = [engine.submit(p, options, box.put) for p in asked]
    found: dict[int, list[int]] = {n: [] for n in numbers}
    left = set(numbers)
    while left:
        delivery = box.get(timeout=LIMIT_S)
        found[delivery.request] += delivery.tokens
        if delivery.finish is not None:
            assert delivery.usage is not None
            assert delivery.usage.completion_tokens == len(found[delivery.request])
            left.remove(delivery.request)
    if alone:
        engine.scheduler.check()
        assert engine.scheduler.idle
        assert engine.scheduler.pool.free == engine.scheduler.pool.size
    return [found[n] for n in numbers]


@contextmanager
def engine(path: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Iterator[Engine]:
    with Engine(LocalModel(path, dtype=dtype), EngineSettings(**settings)) as made:
        yield made
