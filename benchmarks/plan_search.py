"""How fast the planner is: layouts per second with the full model, the search of a whole cluster, one plan.

    python benchmarks/plan_search.py

Rates are per core (one thread) by processor time, so that other work on the machine counts little; the cold search is
the wall clock of fresh processes, imports included.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moesaic.plan.choice import choices
from moesaic.plan.compare import compare_plan
from moesaic.plan.device import device
from moesaic.plan.layouts import Layouts, join
from moesaic.plan.memory import memory, memory_total
from moesaic.plan.schedule import orders, simulate
from moesaic.plan.search import pareto, search
from moesaic.plan.search_api import read_workload
from moesaic.plan.space import Space, grids
from moesaic.plan.stack import stack
from moesaic.plan.step import step_time

COUNTS = (24_960, 25_000, 25_080)
QUOTED = {
    "calculon_evaluations_per_s": 293,
    "calculon_note": "quoted, not measured here: one core of another machine, Turing-NLG 530B, snapshot of 2024-02",
}
COLD = """
from moesaic.plan.search_api import search_plan
for gpus in {counts}:
    search_plan("gpt4", "a100-80", gpus, tokens="13T", batch="60M")
"""


def seconds(run: Callable[[], Any], least: float = 1.0) -> float:
    """Processor seconds of one run: the median of as many as fill `least` seconds, at least five."""
    run()
    took: list[float] = []
    while sum(took) < least or len(took) < 5:
        began = time.process_time()
        run()
        took.append(time.process_time() - began)
    return statistics.median(took)


def cold(counts: tuple[int, ...], runs: int) -> dict[str, Any]:
    """Fresh processes that search `counts`: wall clock and processor time, imports and interpreter included."""
    wall, processor = [], []
    for _ in range(runs):
        before = os.times()
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", COLD.format(counts=counts)], check=True)
        wall.append(time.perf_counter() - began)
        after = os.times()
        processor.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return {
        "devices": counts,
        "wall_s": statistics.median(wall),
        "wall_runs_s": wall,
        "processor_s": statistics.median(processor),
    }


def processor() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if sys.platform == "linux" else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def main() -> None:
    """Measure everything and write results/plan_search.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="cold searches")
    parser.add_argument("--plans", type=int, default=2000, help="single plans")
    arguments = parser.parse_args()
    shape, job, _ = read_workload("gpt4", None, "60M")
    a100, using = device("a100-80"), stack("megatron-core")

    parts = [(g.layouts, np.flatnonzero(g.runs)) for g in grids(shape, a100, job.seq_len, job.batch, 24_960, Space())]
    every = join([layouts.pick(place) for layouts, place in parts if len(place)])
    every = every[np.random.default_rng(0).permutation(len(every))]  # so that neighbours share nothing

    def full(layouts: Layouts) -> Any:
        return memory_total(shape, job, layouts, using), step_time(shape, job, layouts, a100, using).total

    blocks = {n: n / seconds(lambda n=n: full(every[:n])) for n in (1024, 4096, 8192, 16_384, 65_536)}  # type: ignore[misc]
    listed = {n: n / seconds(lambda n=n: memory(shape, job, every[:n], using).total) for n in (8192,)}  # type: ignore[misc]

    def whole(gpus: int) -> int:
        found = search(shape, job, a100, using, gpus)
        best = found.found.best("days", 10)
        choices(shape, job, a100, using, best.layouts, best.gpus, best.goodput)
        pareto(np.stack([-found.found.rate, found.found.memory], axis=1))
        return found.funnel.fed

    fed = {n: whole(n) for n in COUNTS}
    warm = {n: seconds(lambda n=n: whole(n)) for n in COUNTS}  # type: ignore[misc]
    enumerated = search(shape, job, a100, using, 24_960).funnel.enumerated
    plans, walls = [], []
    for i in range(arguments.plans):
        one = every[i : i + 1]
        wall, began = time.perf_counter(), time.process_time()
        memory(shape, job, one, using), step_time(shape, job, one, a100, using)
        plans.append(time.process_time() - began)
        walls.append(time.perf_counter() - wall)
    result = {
        "machine": {"cpu": processor(), "threads": 1, "python": sys.version.split()[0], "numpy": np.__version__},
        "load_average_before": os.getloadavg()[0],
        "model": "gpt4 (120 layers) on a100-80, 7,324 sequences of 8,192",
        "layouts_per_s_by_block": {str(n): rate for n, rate in blocks.items()},
        "layouts_per_s_memory_in_parts": listed[8192],
        "layouts_per_s_in_a_search": fed[24_960] / warm[24_960],
        "layouts_in_a_search": {"enumerated": enumerated, "run": fed[24_960]},
        "warm_search_processor_s": {str(n): s for n, s in warm.items()},
        "compare_example_processor_s": seconds(compare_plan),
        "simulate_15_stages_36_micro_batches_8_chunks_s": seconds(lambda: simulate(orders("interleaved", 15, 36, 8))),
        "cold_search": [cold((24_960,), arguments.runs), cold(COUNTS, arguments.runs)],
        "example_comparison_processor_s": seconds(compare_plan),
        "schedule_of_15_stages_processor_s": seconds(lambda: simulate(orders("interleaved", 15, 36, 8))),
        "one_plan_ms": {
            "p50": 1e3 * float(np.percentile(walls, 50)),
            "p99": 1e3 * float(np.percentile(walls, 99)),
            "p50_processor": 1e3 * float(np.percentile(plans, 50)),
        },
        "quoted": QUOTED,
    }
    print(result)
    path = Path(__file__).parent / "results" / "plan_search.json"  # not through machine.py, which needs torch
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
