"""Latency of the engine itself, without a server: so many requests at once, over and over."""

import queue
import random
import time
from collections.abc import Callable
from typing import Any

from moesaic.serve.engine import Delivery, Engine
from moesaic.serve.latency import Timing, percentile, samples
from moesaic.serve.options import Options

PERCENTS = (50, 90, 99)


def measure_latency(
    engine: Engine,
    *,
    batch: int,
    input_len: int,
    output_len: int,
    warmup: int,
    rounds: int,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Latencies in milliseconds of `rounds` batches of random prompts, greedy, after `warmup` more.

    Each batch is new: a prompt seen before would be taken from the prefix cache. Raises ServeError for lengths that the
    model cannot hold.
    """
    draw, vocabulary = random.Random(seed), engine.model.model.config.vocab_size
    timings: list[Timing] = []
    seconds: list[float] = []
    for number in range(warmup + rounds):
        prompts = [[draw.randrange(vocabulary) for _ in range(input_len)] for _ in range(batch)]
        found = run_batch(engine, prompts, output_len)
        if number >= warmup:
            timings += found
            seconds.append(max(t.ended for t in found) - min(t.sent for t in found))
        progress(number + 1, warmup + rounds)
    row: dict[str, Any] = {"batch": batch, "input_len": input_len, "output_len": output_len, "rounds": rounds}
    row["batch_s"] = {"mean": sum(seconds) / rounds} | {f"p{p}": percentile(seconds, p) for p in PERCENTS}
    row["output_throughput"] = batch * output_len * rounds / sum(seconds)
    for metric in ("ttft", "tpot", "itl", "e2el"):
        values = samples(timings, metric)
        row[f"{metric}_ms"] = {f"p{p}": percentile(values, p) for p in PERCENTS if values}
    return row


def run_batch(engine: Engine, prompts: list[list[int]], output_len: int) -> list[Timing]:
    """Send all at once and wait for the last token of each."""
    deliveries: queue.Queue[Delivery] = queue.Queue()
    options = Options(temperature=0, max_tokens=output_len)  # without stop ids: always so many
    sent = time.monotonic()  # the engine's clock
    numbers = [engine.submit(prompt, options, deliveries.put) for prompt in prompts]
    ended: dict[int, Timing] = {}
    while len(ended) < len(numbers):
        one = deliveries.get()
        if one.usage is not None:
            times = tuple(one.usage.token_times)
            error = "the engine gave the request up" if one.finish == "abort" else None
            ended[one.request] = Timing(
                sent, times, times[-1] if times else time.monotonic(), one.usage.prompt_tokens, len(times), error
            )
    return [ended[number] for number in numbers]


def describe(rows: list[dict[str, Any]]) -> str:
    """A line for each batch size."""
    lines = [
        f"{'batch':>5} {'tokens/s':>9} {'TTFT p50':>9} {'p99':>8} {'TPOT p50':>9} {'p99':>8} {'E2E p50':>9} {'p99':>8}"
    ]
    for row in rows:
        cells = [row[f"{m}_ms"].get(p) for m in ("ttft", "tpot", "e2el") for p in ("p50", "p99")]
        shown = " ".join(f"{'-' if c is None else f'{c:.1f}':>{w}}" for c, w in zip(cells, (9, 8) * 3, strict=True))
        lines.append(f"{row['batch']:>5} {row['output_throughput']:>9,.1f} {shown}")
    return "\n".join([*lines, "latencies in milliseconds"])
