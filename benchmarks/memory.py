"""Peak memory of each rank in several layouts, held against what the planner says.

    python benchmarks/memory.py [--only "dp2 zero0,pp2"] [--what]

Model and layouts are those of benchmarks/layouts.py; a step has four micro-batches of 8 x 512 tokens a replica. Counted
is every tensor that an operator of torch makes, from before the model is built to the end of the second step (the first
makes the moments), as long as it lives: what the C library keeps for later, libraries need and operators use within
themselves is left out, as the planner's `allocated` leaves it out. The peak is the second step's.

The planner is asked for the layers that the stage really has, and counts as it does for everybody: 2 bytes of a weight,
4 of its gradient, 12 of master and moments.
"""

import argparse
import gc
import traceback
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from layouts import SIDES, Side, finish_rank, rank_processes
from machine import describe, keep
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from train_vs_transformers import CONFIG, LENGTH, SEQUENCES

from moesaic.parallel.private import local
from moesaic.parallel.world import World
from moesaic.plan.job import Job
from moesaic.plan.layouts import Layouts
from moesaic.plan.memory import FRAGMENTATION, RESERVED_BYTES, stage_total
from moesaic.plan.shape import shape_of
from moesaic.plan.stack import stack

MICRO_BATCHES = 4
LIMIT_S = 300
MB = 2**20
SMALL = 2**19  # bytes below which nobody asks where a tensor was made


class Allocated(TorchDispatchMode):
    """Bytes of the storages that live, and the most there have been since `reset`."""

    def __init__(self) -> None:
        super().__init__()
        self.total = self.most = 0
        self.living: dict[int, tuple[int, str]] = {}
        self.at_peak: list[tuple[int, str]] = []

    def reset(self) -> None:
        """Begin to look for a new peak."""
        self.most = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and note what it made."""
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._note(local(tensor))
        return out

    def _note(self, tensor: torch.Tensor) -> None:
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self.living.get(key)
        if known is None:
            weakref.finalize(storage, self._gone, key)
        elif known[0] == size:
            return
        self.total += size - (known[0] if known else 0)
        self.living[key] = (size, _place() if size > SMALL else "small")
        if self.total > self.most:
            self.most = self.total
            self.at_peak = list(self.living.values())

    def _gone(self, key: int) -> None:
        self.total -= self.living.pop(key)[0]


def _place() -> str:
    """Lines of ours, and of what torch has for many processes, on the way to here; innermost first."""
    ours = [f for f in traceback.extract_stack() if "/moesaic/" in f.filename or "/distributed/" in f.filename]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(ours[-4:]))


def rank_of(name: str, what: bool) -> None:
    """Two steps of one rank; says the peak of the second and what is left after it, in bytes."""
    layout = SIDES[name]
    torch.set_num_threads(1)
    world = World.join(LIMIT_S)
    with Allocated() as allocated:
        side = Side.build(layout, world, CONFIG.n_layers)
        sequences = MICRO_BATCHES * SEQUENCES * layout.dp
        side.step(side.batch(sequences, 1), 1e-4)
        allocated.reset()
        side.step(side.batch(sequences, 2), 1e-4)
        gc.collect()
    places: Counter[str] = Counter()
    for size, place in allocated.at_peak:
        places[place] += size
    found: dict[str, Any] = {"peak": allocated.most, "after": allocated.total}
    found["layers"] = sum(len(part.layers) for part in side.engine.parts)
    if what:
        found["places"] = places.most_common(20)
    finish_rank(world, found)


def forecast(name: str, rank: int, layers: int) -> float:
    """Bytes that the planner says a rank allocates."""
    layout = SIDES[name]
    degrees = {"tp": layout.tp, "pp": layout.pp, "dp": layout.dp, "ep": layout.ep, "etp": layout.etp}
    row = Layouts.of(**degrees, micro_batch=SEQUENCES, zero=layout.zero)
    job = Job(LENGTH, MICRO_BATCHES * SEQUENCES * layout.dp)
    index = np.atleast_1d(rank // (layout.world // layout.pp))
    total = stage_total(shape_of(CONFIG, "speed"), job, row.floats, stack("fsdp"), np.atleast_1d(layers), index).item()
    return (total - RESERVED_BYTES) / (1 + FRAGMENTATION)


def main() -> None:
    """Measure one layout after another, print a table, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="layouts, with commas between")
    parser.add_argument("--what", action="store_true", help="also say what lay there at the peak of the first rank")
    parser.add_argument("--rank-of", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank_of:
        return rank_of(arguments.rank_of, arguments.what)
    rows = {}
    print("| layout | rank | layers | peak, MB | planned, MB | peak / planned | between steps, MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.only.split(",") if arguments.only else SIDES:
        again = ["--rank-of", name] + ["--what"] * arguments.what
        ranks: list[dict[str, Any]] = rank_processes(__file__, again, SIDES[name].world)
        for rank, found in enumerate(ranks):
            plan = found["planned"] = forecast(name, rank, int(found["layers"]))
            print(
                f"| {name} | {rank} | {found['layers']} | {found['peak'] / MB:,.0f} | {plan / MB:,.0f} | "
                f"{found['peak'] / plan:.3f} | {found['after'] / MB:,.0f} |",
                flush=True,
            )
        for place, size in ranks[0].pop("places", []):
            print(f"  {size / MB:8.1f} MB  {place}")
        rows[name] = ranks
    if arguments.only is None:
        print(keep("memory", {"machine": describe(), "micro_batches": MICRO_BATCHES, "rows": rows}))


if __name__ == "__main__":
    main()
