"""What scheduling costs, and whether it forgets: scheduler and block pool without a model.

    python benchmarks/serve_scheduler.py [--step-ms 30] [--requests 100000]

Cost: 64 answers are written, contexts of 100 to 768 as in the serving benchmark; the time of `plan` and `commit` in
each step, which is what the engine's thread does besides running the model and handing tokens out.
`--step-ms` is what a step of the model takes, for the share. Growth: so many short requests with shared beginnings, one
after the other through a runner that invents tokens; objects and memory after a tenth of them and after all.
"""

import argparse
import gc
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import describe, keep
from serve_kit import workload

from moesaic.serve.blocks import BlockPool
from moesaic.serve.requests import Request
from moesaic.serve.scheduler import Limits, Scheduler
from moesaic.serve.step_plan import PLAIN, Outcome, StepPlan, StepResult
from moesaic.serve.step_time import StepTime

SEQUENCES, STEPS = 64, 400
VOCABULARY, CONTEXT, BLOCK = 32_000, 2048, 16
EXPERTS, TOP_K = 16, 2
CAP_S = 0.05
PAGE = 4096


def make_scheduler(blocks: int) -> Scheduler:
    """As the engine makes it, under a latency cap so that the step-time model is asked."""
    pool, times = BlockPool(blocks, BLOCK), StepTime(EXPERTS, TOP_K)
    return Scheduler(pool, Limits(max_token_latency_s=CAP_S), times, CONTEXT)


def invented(plan: StepPlan, draw: random.Random) -> StepResult:
    """What a runner would say, in a time that follows the load."""
    outcomes = tuple(Outcome((draw.randrange(VOCABULARY),), (PLAIN,)) if w.sample else Outcome() for w in plan.work)
    return StepResult(plan.number, outcomes, 1e-3 + 1e-4 * plan.positions + 1e-8 * plan.context)


def cost() -> list[float]:
    """Seconds of `plan` and `commit` in each step while 64 answers are written."""
    scheduler, draw = make_scheduler(SEQUENCES * CONTEXT // BLOCK), random.Random(0)
    for number, ask in enumerate(workload.many(VOCABULARY, SEQUENCES)):
        scheduler.add(Request(number, tuple(ask.prompt), CONTEXT - len(ask.prompt)))
    seconds: list[float] = []
    while len(seconds) < STEPS:
        begin = time.perf_counter()
        plan = scheduler.plan()
        planned = time.perf_counter() - begin
        assert plan is not None
        result = invented(plan, draw)
        begin = time.perf_counter()
        scheduler.commit(result)
        if plan.positions == SEQUENCES == len(plan.work):  # no prompt in it
            seconds.append(planned + time.perf_counter() - begin)
    return seconds


def growth(count: int) -> dict[str, Any]:
    """Objects and resident bytes after a tenth of `count` requests and after all, and how many steps it took."""
    scheduler, draw, sent, steps = make_scheduler(1024), random.Random(1), 0, 0
    requests = _short_requests(count, draw)
    marks: list[dict[str, int]] = []
    begin = time.perf_counter()
    while sent < count or not scheduler.idle:
        while sent < count and scheduler.waiting < SEQUENCES:
            scheduler.add(next(requests))
            sent += 1
            if sent in (count // 10, count):
                gc.collect()
                marks.append({"requests": sent, "objects": len(gc.get_objects()), "resident": _resident()})
        plan = scheduler.plan()
        assert plan is not None
        scheduler.commit(invented(plan, draw))
        steps += 1
    scheduler.check()
    return {
        "requests": count,
        "steps": steps,
        "seconds": time.perf_counter() - begin,
        "preemptions": scheduler.preemptions,
        "reused_tokens": scheduler.reused_tokens,
        "marks": marks,
        "blocks_left": scheduler.pool.size - scheduler.pool.free,
    }


def _short_requests(count: int, draw: random.Random) -> Iterator[Request]:
    beginnings = [tuple(draw.randrange(VOCABULARY) for _ in range(32)) for _ in range(100)]
    for number in range(count):
        rest = tuple(draw.randrange(VOCABULARY) for _ in range(draw.randint(1, 40)))
        yield Request(number, draw.choice(beginnings) + rest, draw.randint(1, 8))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def main() -> None:
    """Measure both, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step-ms", type=float, help="what a step of the model takes, for the share")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--no-keep", action="store_true", help="do not write results/serve_scheduler.json")
    arguments = parser.parse_args()
    seconds = cost()
    found: dict[str, Any] = {
        "machine": describe(),
        "sequences": SEQUENCES,
        "median_s": statistics.median(seconds),
        "p99_s": statistics.quantiles(seconds, n=100)[98],
        "growth": growth(arguments.requests),
    }
    middle, high = found["median_s"] * 1e6, found["p99_s"] * 1e6
    text = f"{SEQUENCES} sequences: {middle:.0f} us a step in the median, p99 {high:.0f} us"
    if arguments.step_ms:
        found |= {"step_s": arguments.step_ms / 1e3, "share": found["median_s"] / (arguments.step_ms / 1e3)}
        text += f"; {found['share']:.2%} of a step of {arguments.step_ms:g} ms"
    print(text)
    first, last = found["growth"]["marks"]
    print(
        f"{last['requests']:,} requests in {found['growth']['steps']:,} steps: {last['objects'] - first['objects']:+,} "
        f"objects and {(last['resident'] - first['resident']) / 1024:+,.0f} KiB since the first {first['requests']:,}; "
        f"{found['growth']['blocks_left']} blocks left behind"
    )
    if not arguments.no_keep:
        print(keep("serve_scheduler", found))


if __name__ == "__main__":
    main()
