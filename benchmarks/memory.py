"""Peak memory of each rank in several layouts, held against what the planner says.

    python benchmarks/memory.py [--only "dp2 zero0,pp2"]

Model and layouts are those of benchmarks/layouts.py; a step has four micro-batches of 8 x 512 tokens a replica. Counted
are the bytes that torch's allocator has handed out, from before the model is built to the end of the second step (the
first makes the moments), by torch's own profiler: what the C library keeps for later and what libraries need is
left out, as the planner's `allocated` leaves it out. The planner is given the bytes of our trainer, which keeps weights
in fp32 and no copy of them in 16 bit: 16 per parameter where nothing is sharded.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from layouts import SIDES, Side, finish_rank, rank_processes
from machine import describe, keep
from train_vs_transformers import CONFIG, LENGTH, SEQUENCES

from moesaic.parallel.world import World
from moesaic.plan.job import Job
from moesaic.plan.layouts import Layouts
from moesaic.plan.memory import Memory, memory
from moesaic.plan.shape import shape_of
from moesaic.plan.stack import stack

MICRO_BATCHES = 4
LIMIT_S = 300
OPTIMIZER_BYTES = 10  # two moments in fp32, and what fp32 weights have over the planner's 16 bit
MB = 2**20


def rank_of(name: str) -> None:
    """Two steps of one rank under the profiler; prints the peak and what lay there, in bytes."""
    layout = SIDES[name]
    torch.set_num_threads(1)
    world = World.join(LIMIT_S)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        side = Side.build(layout, world, CONFIG.n_layers)
        sequences = MICRO_BATCHES * SEQUENCES * layout.dp
        for seed in (1, 2):
            with torch.profiler.record_function(f"step {seed}"):
                side.step(side.batch(sequences, seed), 1e-4)
    finish_rank(world, peak(profile))


def peak(profile: torch.profiler.profile) -> dict[str, float]:
    """The most that was allocated at once in the second step, and what was when it began and ended."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    step = next(e for e in events if e.get("name") == "step 2")
    began, ended = step["ts"], step["ts"] + step["dur"]
    held, most, before = 0, 0, 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        if event["ts"] > ended:
            break
        held += event["args"]["Bytes"]
        if event["ts"] < began:
            before = held
        else:
            most = max(most, held)
    return {"peak": most, "before": before, "after": held}


def forecast(name: str) -> Memory:
    """The planner's memory of a rank of the heaviest stage."""
    layout = SIDES[name]
    job = Job(LENGTH, MICRO_BATCHES * SEQUENCES * layout.dp, optimizer_bytes=OPTIMIZER_BYTES)
    degrees = {"tp": layout.tp, "pp": layout.pp, "dp": layout.dp, "ep": layout.ep, "etp": layout.etp}
    row = Layouts.of(**degrees, micro_batch=SEQUENCES, zero=layout.zero if layout.dp > 1 else 0)
    return memory(shape_of(CONFIG, "speed"), job, row, stack("fsdp"))


def main() -> None:
    """Measure one layout after another, print a table, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="layouts, with commas between")
    parser.add_argument("--rank-of", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank_of:
        rank_of(arguments.rank_of)
    names = arguments.only.split(",") if arguments.only else list(SIDES)
    rows = {}
    print("| layout | peak, MB | planned, MB | peak / planned | between steps, MB | planned |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in names:
        ranks = rank_processes(__file__, ["--rank-of", name], SIDES[name].world)
        heaviest, plan = max(ranks, key=lambda rank: rank["peak"]), forecast(name)
        allocated = plan.allocated.item()
        states = (plan.weights + plan.gradients + plan.optimizer).item()
        rows[name] = {"ranks": ranks, "planned": allocated, "planned_states": states}
        print(
            f"| {name} | {heaviest['peak'] / MB:,.0f} | {allocated / MB:,.0f} | {heaviest['peak'] / allocated:.3f} | "
            f"{heaviest['after'] / MB:,.0f} | {states / MB:,.0f} |",
            flush=True,
        )
    if arguments.only is None:
        print(keep("memory", {"machine": describe(), "micro_batches": MICRO_BATCHES, "rows": rows}))


if __name__ == "__main__":
    main()
