"""A first idea of how long steps take, so that the cap holds and largest batches are known before anybody asks."""

import time
from collections.abc import Iterator

from moesaic.serve.batch import StepBatch
from moesaic.serve.decoder import Decoder
from moesaic.serve.step_plan import Work
from moesaic.serve.step_time import Load, StepTime

BUDGET_S = 0.4  # in all; a slow model is measured less
BATCHES, CHUNKS = (1, 4, 16, 64), (32, 256)


def calibrate(decoder: Decoder, times: StepTime, blocks: int, block_size: int, context: int) -> None:
    """Time a few steps on empty pages and let `times` learn them; nothing of them stays.

    `blocks`: that the decoder has; `context`: longest sequence.
    """
    began = time.perf_counter()
    longest = min(context, blocks * block_size) - 1
    decoder.step(StepBatch.of([_work(0, 1, block_size)]))  # the first one touches memory and builds tables
    for work in _steps(longest, block_size):
        started = time.perf_counter()
        decoder.step(StepBatch.of(work))
        seconds = time.perf_counter() - started
        load = Load()
        for w in work:
            load = load.with_work(w.start, w.width)
        times.learn(load, seconds)
        if time.perf_counter() - began > BUDGET_S:
            return


def _steps(longest: int, block_size: int) -> Iterator[list[Work]]:
    """The same blocks stand for all requests: what is in them does not matter, nor who reads them."""
    for _ in range(2):
        for batch in BATCHES:
            for start in (min(16, longest), min(512, longest)):
                yield [_work(start, 1, block_size)] * batch
        for chunk in CHUNKS:
            if chunk <= longest:
                yield [_work(0, chunk, block_size)]


def _work(start: int, width: int, block_size: int) -> Work:
    table = tuple(range(-(-(start + width) // block_size)))
    return Work(0, start, tuple(i % 7 for i in range(width)), table, sample=True)
