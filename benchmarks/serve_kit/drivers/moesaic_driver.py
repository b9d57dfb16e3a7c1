"""Ours: the engine that `moesaic serve` runs, in this process. Settings: `kernels`, `threads`, and EngineSettings'."""

import queue
from pathlib import Path
from typing import Any

import torch
from protocol import Generate, drive

import moesaic
from moesaic.serve.engine import Delivery, Engine
from moesaic.serve.local import LocalModel
from moesaic.serve.options import Options
from moesaic.serve.settings import EngineSettings


def start(model: str, settings: dict[str, Any]) -> tuple[str, Generate]:
    """Load the model and start the engine."""
    settings = dict(settings)
    torch.set_num_threads(settings.pop("threads"))
    engine = Engine(LocalModel(Path(model)), EngineSettings(prefix_cache=False, **settings))
    engine.start()

    def generate(prompts: list[list[int]], outputs: list[int]) -> list[list[int]]:
        deliveries: queue.Queue[Delivery] = queue.Queue()
        numbers = [
            engine.submit(prompt, Options(temperature=0, max_tokens=n), deliveries.put)
            for prompt, n in zip(prompts, outputs, strict=True)
        ]
        found: dict[int, list[int]] = {number: [] for number in numbers}
        running = len(numbers)
        while running:
            one = deliveries.get()
            found[one.request] += one.tokens
            running -= one.finish is not None
        return [found[number] for number in numbers]

    return moesaic.__version__, generate


if __name__ == "__main__":
    drive(start)
