"""One training step in several layouts on two processes of one thread, beside one process of two threads.

    python benchmarks/layouts.py [--tokens 65536] [--rounds 3] [--only "dp2 zero0,pp2"] [--layers 8]

Model, micro-batches of 8 x 512 tokens, AdamW and kernels are those of benchmarks/train_vs_transformers.py. Layouts
take turns; each measurement has processes of its own, which warm up on a small step and then time a whole one. The
first two layouts are measured in every round, the others in one less. Printed ratio: the median over rounds of the
time of one process in a round by the layout's in the same round.

Memory is the peak of a rank's resident set over what it had before the model was built, with what the C library keeps
for later; benchmarks/memory.py counts what is allocated. Bytes sent are counted in
the warm-up step, and held against what `moesaic.plan.traffic` says of a step of that size; what it says of the whole
step stands beside it.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from comm_bytes import CommBytes
from machine import describe, keep
from train_vs_transformers import CONFIG, LENGTH, SEQUENCES, VOCABULARY

from moesaic.data import Batch
from moesaic.model.kernels import choose_kernels
from moesaic.parallel.engine import Engine
from moesaic.parallel.stages import split_layers
from moesaic.parallel.world import World
from moesaic.plan.traffic import StepShape, total_bytes, traffic
from moesaic.recipe import BatchStep, Layout, Optimizer, Stage
from moesaic.train.memory import keep_freed_memory
from moesaic.train.optimizer import build_optimizer
from moesaic.train.step import TrainStep

SIDES = {
    "one process": Layout(),
    "dp2 zero0": Layout(dp=2, zero=0),
    "dp2 zero1": Layout(dp=2, zero=1),
    "tp2": Layout(tp=2),
    "pp2": Layout(pp=2),
    "ep2": Layout(dp=2, ep=2, zero=0),
}
BASE, JUDGED = "one process", "dp2 zero0"
WARM = 16  # sequences of the first step
LIMIT_S = 300


@dataclass(frozen=True)
class Side:
    """One rank's part in a measurement, ready to train."""

    engine: Engine
    step: TrainStep

    @classmethod
    def build(cls, layout: Layout, world: World, layers: int) -> "Side":
        """The training path as `moesaic train` takes it."""
        kernels, _ = choose_kernels("auto", world.device)
        model = CONFIG.model_copy(update={"n_layers": layers})
        engine = Engine(model, layout, world, kernels, torch.bfloat16)
        engine.initialise(0)
        stage = Stage(
            name="speed",
            sources=("none",),
            tokens=SEQUENCES * LENGTH,
            seq_len=LENGTH,
            batch=(BatchStep(tokens=SEQUENCES * LENGTH),),
            micro_batch=SEQUENCES,
            optimizer=Optimizer(lr=1e-4),
        )
        return cls(engine, TrainStep(engine, stage, build_optimizer(engine.named_parameters(), stage.optimizer)))

    def batch(self, sequences: int, seed: int) -> Batch:
        """This rank's rows of a global batch that is the same in every layout."""
        layout, dp = self.engine.layout, self.engine.meshes.place.dp
        ids = torch.randint(0, VOCABULARY, (sequences, LENGTH + 1), generator=torch.Generator().manual_seed(seed))
        ids = ids.chunk(layout.dp)[dp]
        documents = torch.zeros(len(ids), LENGTH, dtype=torch.int64)
        positions = torch.arange(LENGTH).expand(len(ids), LENGTH)
        return Batch(ids[:, :-1], ids[:, 1:], documents, positions, of_sequences=sequences)

    def forecast(self, sequences: int) -> float:
        """Bytes that the planner says this rank sends in a step."""
        layout, engine = self.engine.layout, self.engine
        micro, rows = SEQUENCES, sequences // layout.dp
        if engine.pipeline is not None:
            micro, count = engine.pipeline.micro_batches(rows, micro)
        else:
            count = -(-rows // micro)
        ranges = split_layers(engine.config, layout.pp * layout.chunks_per_rank)
        held = {n: ranges[n] for n in engine.pieces}
        return total_bytes(traffic(engine.config, layout, StepShape(count, micro, LENGTH, 2), held))


def rank_of(name: str, sequences: int, layers: int) -> None:
    """What one rank does in one measurement; prints its findings as JSON."""
    layout = SIDES[name]
    torch.set_num_threads(2 if layout.world == 1 else 1)
    keep_freed_memory()
    world = World.join(LIMIT_S)
    before = resident_mb()
    side = Side.build(layout, world, layers)
    counter = CommBytes() if world.size > 1 else nullcontext()
    with counter:
        side.step(side.batch(WARM, 1), 1e-4)
    batch = side.batch(sequences, 2)
    world.barrier()
    began = time.perf_counter()
    result = side.step(batch, 1e-4)
    world.barrier()
    found = {
        "seconds": time.perf_counter() - began,
        "loss": result.loss,
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before,
        "sent_warm": counter.total if isinstance(counter, CommBytes) else 0.0,
        "forecast_warm": side.forecast(WARM),
        "forecast": side.forecast(sequences),
    }
    finish_rank(world, found)


def finish_rank(world: World, found: dict[str, float]) -> NoReturn:
    """Say what this rank found, and end when all have."""
    print(json.dumps(found), flush=True)
    world.barrier()
    os._exit(0)  # gloo's threads may outlive the group


def resident_mb() -> float:
    """Resident set of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def measure(name: str, sequences: int, layers: int) -> list[dict[str, float]]:
    """One measurement in new processes: what each rank found."""
    arguments = ["--rank-of", name, "--tokens", str(sequences * LENGTH), "--layers", str(layers)]
    return rank_processes(__file__, arguments, SIDES[name].world)


def rank_processes(script: str, arguments: list[str], size: int) -> list[dict[str, float]]:
    """Run a script on `size` ranks of this machine: what each said with `finish_rank`."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=LIMIT_S))
    ranks = []
    for rank in range(size):
        variables = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": store.port,
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "OMP_NUM_THREADS": 2 // size,
        }
        environment = os.environ | {key: str(value) for key, value in variables.items()}
        command = [sys.executable, script, *arguments]
        ranks.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
    try:
        return [json.loads(process.communicate(timeout=LIMIT_S)[0].splitlines()[-1]) for process in ranks]
    finally:
        for process in ranks:
            process.kill()


def summary(rounds: list[dict[str, list[dict[str, float]]]], names: list[str], tokens: int) -> dict[str, Any]:
    """Medians over rounds; of ranks the slowest, the largest and, for bytes, the one that sends most."""
    rows = {}
    for name in names:
        found = [r[name] for r in rounds if name in r]
        seconds = [max(rank["seconds"] for rank in ranks) for ranks in found]
        ratios = [r[BASE][0]["seconds"] / s for r, s in zip((r for r in rounds if name in r), seconds, strict=True)]
        most = max(found[0], key=lambda rank: rank["sent_warm"])
        rows[name] = {
            "seconds": seconds,
            "tokens_per_second": tokens / statistics.median(seconds),
            "ratio": statistics.median(ratios),
            "ratios": ratios,
            "loss": found[0][0]["loss"],
            "memory_mb": max(statistics.median(ranks[i]["memory_mb"] for ranks in found) for i in range(len(found[0]))),
            "memory_mb_of_ranks": [statistics.median(x[i]["memory_mb"] for x in found) for i in range(len(found[0]))],
            "sent_warm": most["sent_warm"],
            "sent_over_forecast": most["sent_warm"] / most["forecast_warm"] if most["forecast_warm"] else None,
            "forecast_sent": most["forecast"],
        }
    return rows


def main() -> None:
    """Take turns, print a table, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=65_536, help="of a step, a multiple of 16 x 512")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=CONFIG.n_layers, help="fewer for a quick look; 8 are kept")
    parser.add_argument("--only", help="layouts beside one process, with commas between")
    parser.add_argument("--rank-of", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sequences = arguments.tokens // LENGTH
    if arguments.rank_of:
        return rank_of(arguments.rank_of, sequences, arguments.layers)
    names = [n for n in SIDES if n == BASE or arguments.only is None or n in arguments.only.split(",")]
    rounds = []
    for i in range(arguments.rounds):
        now = [n for n in names if n in (BASE, JUDGED) or i < max(1, arguments.rounds - 1)]
        rounds.append({name: measure(name, sequences, arguments.layers) for name in now})
    rows = summary(rounds, names, arguments.tokens)
    print(f"{arguments.tokens:,} tokens a step; {describe()}")
    print(
        "| layout | tokens/s | times one process | peak memory of a rank, MB | sent, MB | counted / forecast | loss |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        share = "" if row["sent_over_forecast"] is None else f"{row['sent_over_forecast']:.3f}"
        print(
            f"| {name} | {row['tokens_per_second']:,.0f} | {row['ratio']:.2f} | {row['memory_mb']:,.0f} | "
            f"{row['forecast_sent'] / 1e6:,.0f} | {share} | {row['loss']:.4f} |"
        )
    if arguments.only is None and arguments.layers == CONFIG.n_layers:
        print(keep("layouts", {"machine": describe(), "tokens": arguments.tokens, "rows": rows}))


if __name__ == "__main__":
    main()
