"""A layout at full size without its devices: what some ranks hold, counted on the built objects, beside the forecast.

    python -m moesaic.parallel.scale gpt4 [--set layout.zero=3]

Of a process group of 24,960 ranks one process plays one rank at a time. Meshes, sharding and optimizer are those of
training; weights are on meta, so that they have shapes and take no memory.

Both sides count as the planner does: 2 bytes for each weight that a rank computes with, 4 for each gradient, 12 for
each parameter in the optimizer (master weight and two moments), the last divided among replicas. Our trainer differs
in two points, which `Row.trainer_bytes` counts. What replicas do not divide is its own master: 2 bytes less for each
parameter. Of what they divide, experts alone are gathered in 2 bytes, dense weights (under zero-bubble schedules all)
in 4.

Replicas deal out whole rows of a weight's first dimension, each as many as the fullest (FSDP pads the others): 276 of
28,672 for each of 104, which makes 28,704, and the last replicas have less. The forecast divides evenly; the
difference is `Row.uneven_bytes`.

ZeRO-3 over a pipeline is forecast as engines do it that give weights and gradients away after each micro-batch. Ours
does not: until the last micro-batch torch's pipelines tell FSDP to keep the weights of a stage whole after a backward
pass, and its gradients. What that takes more is counted here, and is `Row.held_whole_bytes`.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from moesaic.errors import MoesaicError
from moesaic.parallel.engine import Engine
from moesaic.parallel.meshes import Place
from moesaic.parallel.private import local, local_shape, pretended_ranks
from moesaic.parallel.world import World
from moesaic.plan.job import Job
from moesaic.plan.layouts import RECOMPUTE, Layouts
from moesaic.plan.memory import Held, held
from moesaic.plan.shape import shape_of
from moesaic.recipe import Layout, Recipe, read_recipe

BF16, FP32 = 2, 4  # bytes


@dataclass(frozen=True)
class Row:
    """One rank. Bytes and parameters in pairs: counted on the built objects, and forecast."""

    rank: int
    place: Place
    layers: int
    parameters: tuple[int, int]
    """Of this rank's stage, before replicas divide them."""
    weight_bytes: tuple[int, float]
    gradient_bytes: tuple[int, float]
    optimizer_bytes: tuple[int, float]
    uneven_bytes: float
    """Of the three, what there is because replicas divide whole rows; negative on the last ones, which have fewer."""
    held_whole_bytes: float
    """Of weights and gradients, what torch's pipelines hold whole and the forecast of zero = 3 divides."""
    trainer_bytes: int
    """Weights, gradients and optimizer of our own trainer, at the end of the last backward pass."""
    seconds: tuple[float, float]
    """To build meshes and parts; the optimizer."""
    host_mb: float
    """Largest memory of this process so far."""

    @property
    def bytes(self) -> tuple[float, float]:
        """Weights, gradients and optimizer together: counted, forecast."""
        pairs = (self.weight_bytes, self.gradient_bytes, self.optimizer_bytes)
        return sum(built for built, _ in pairs), sum(forecast for _, forecast in pairs)


@dataclass(frozen=True)
class _Weight:
    """Elements of one weight on one rank."""

    whole: int  # before replicas divide it
    share: float  # whole / replicas
    kept: int  # what the rank has allocated for good: its share with padding
    moments: int  # of both moments
    gathered: int  # bytes, whole, of what replicas gather; 0 where they divide nothing

    @classmethod
    def of(cls, weight: Tensor, moments: Sequence[Tensor], each: int) -> "_Weight":
        """Of a parameter and its moments; if replicas divide it, they gather it in `each` bytes a value."""
        kept, in_moments = _allocated(weight), sum(_allocated(m) for m in moments)
        if not isinstance(weight, DTensor):
            return cls(weight.numel(), weight.numel(), kept, in_moments, 0)
        whole, replicas, gathered = list(weight.placements), 1, False
        for i, name in enumerate(weight.device_mesh.mesh_dim_names or ()):
            if name in ("fsdp", "edp"):
                whole[i], replicas, gathered = Replicate(), replicas * weight.device_mesh.size(i), True
        count = int(np.prod(local_shape(weight, whole)))
        return cls(count, count / replicas, kept, in_moments, count * each * gathered)


def check_scale(recipe: Recipe, layout: Layout | None = None, ranks: Sequence[int] | None = None) -> list[Row]:
    """Build what `ranks` hold of a recipe's model and count it. No process group may exist.

    `layout`: in place of the recipe's. `ranks`: by default the first and the last of the first, a middle and the last
    pipeline stage. Raises LayoutError.
    """
    layout = layout or recipe.layout
    if ranks is None:
        each = layout.world // layout.pp
        stages = sorted({0, layout.pp // 2, layout.pp - 1})
        ranks = sorted({rank for s in stages for rank in (s * each, (s + 1) * each - 1)})
    return [_row(recipe, layout, rank) for rank in ranks]


def forecast(recipe: Recipe, layout: Layout, stage: int) -> Held:
    """What the planner says that a rank of pipeline stage `stage` holds."""
    first = recipe.stages[0]
    job = Job(
        first.seq_len,
        first.batch[-1].tokens // first.seq_len,
        zero_bubble=layout.pp > 1 and layout.schedule == "zero_bubble",
    )
    return held(shape_of(recipe.model, recipe.name), job, as_planned(layout, first.micro_batch), np.array([stage]))


def as_planned(layout: Layout, micro_batch: int) -> Layouts:
    """A recipe's layout in the planner's terms. Zero-bubble is the job's there, and has no chunks."""
    degrees = {name: getattr(layout, name) for name in ("tp", "pp", "cp", "dp", "ep", "etp", "zero")}
    chunks = layout.chunks_per_rank if layout.schedule == "interleaved" else 1
    return Layouts.of(**degrees, micro_batch=micro_batch, chunks=chunks, recompute=RECOMPUTE.index(layout.recompute))


def _row(recipe: Recipe, layout: Layout, rank: int) -> Row:
    with pretended_ranks(rank, layout.world):
        began = time.perf_counter()
        world = World(rank, layout.world, torch.device("meta"))
        engine = Engine(recipe.model, layout, world, compute_dtype=torch.bfloat16)
        _ = engine.meshes.ends  # the one group that is made when it is first asked for
        built = time.perf_counter()
        weights = list(_weights(engine))
        seconds = (built - began, time.perf_counter() - built)
    place = engine.meshes.place
    plan = forecast(recipe, layout, place.pp)
    whole = sum(w.whole for w in weights)
    kept, moments = sum(w.kept for w in weights), sum(w.moments for w in weights)
    divided = layout.zero == 3 and layout.pp == 1
    used, reduced = (kept, kept) if divided else (whole, whole)
    apart = 0.0 if layout.zero == 0 else sum(w.kept + w.moments - 3 * w.share for w in weights)
    uneven = FP32 * apart + (BF16 + FP32) * sum(w.kept - w.share for w in weights) * divided
    held_whole = (BF16 + FP32) * sum(w.whole - w.share for w in weights) * (layout.zero == 3 and not divided)
    return Row(
        rank=rank,
        place=place,
        layers=sum(len(part.layers) for part in engine.parts),
        parameters=(whole, round(plan.parameters.item())),
        weight_bytes=(BF16 * used, plan.weights.item()),
        gradient_bytes=(FP32 * reduced, plan.gradients.item()),
        optimizer_bytes=(FP32 * (kept + moments), plan.optimizer.item()),
        uneven_bytes=uneven,
        held_whole_bytes=held_whole,
        trainer_bytes=FP32 * (kept + moments + reduced) + sum(w.gathered for w in weights) * (not divided),
        seconds=seconds,
        host_mb=_peak_mb(),
    )


def _peak_mb() -> float:
    """Most memory this process has had; nan outside Linux. getrusage would begin with that of the forking process."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return math.nan
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _weights(engine: Engine) -> Iterator[_Weight]:
    """Every weight of a rank after one step of torch's AdamW, which makes the moments."""
    named = list(engine.named_parameters())
    parameters = [p for _, p in named]
    optimizer = torch.optim.AdamW(parameters, foreach=False)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in named:
        state = optimizer.state[parameter]
        moments = (state["exp_avg"], state["exp_avg_sq"])
        each = engine.expert_dtype.itemsize if name in engine.gradients.routed else FP32
        yield _Weight.of(parameter.detach(), moments, each)


def _allocated(tensor: Tensor) -> int:
    """Elements that stand in memory for this rank's piece, those that pad it included."""
    piece = local(tensor)
    return piece.untyped_storage().nbytes() // piece.element_size()


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    head = (
        "rank pp dp tp layers parameters planned weights gradients optimizer sum,GB planned uneven held-whole "
        "trainer,GB build,s"
    )
    lines = [head.split()]
    for r in rows:
        kinds = (r.weight_bytes[0], r.gradient_bytes[0], r.optimizer_bytes[0], *r.bytes)
        sizes = [f"{n / 1e9:.4f}" for n in (*kinds, r.uneven_bytes, r.held_whole_bytes, r.trainer_bytes)]
        numbers = [str(n) for n in (r.rank, r.place.pp, r.place.dp, r.place.tp, r.layers)]
        lines.append([*numbers, *(f"{n:,}" for n in r.parameters), *sizes, f"{sum(r.seconds):.2f}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(w.rjust(n) for w, n in zip(line, widths, strict=True)) for line in lines)


def main() -> None:
    """Print the table of one recipe. Exits with 1 where a parameter is missing or too much."""
    parser = argparse.ArgumentParser(prog="moesaic.parallel.scale", description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="a recipe's name or file")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override one value")
    arguments = parser.parse_args()
    try:
        recipe = read_recipe(arguments.recipe, arguments.set)
        rows = check_scale(recipe)
    except MoesaicError as error:
        sys.exit(str(error))
    print(f"{recipe.name}: {recipe.layout.world:,} ranks, {rows[-1].host_mb:,.0f} MB of host memory")
    print(table(rows))
    if any(row.held_whole_bytes for row in rows):
        print("held whole by torch's pipelines: weights and gradients that zero = 3 divides in the forecast")
    sys.exit(any(built != planned for built, planned in (r.parameters for r in rows)))


if __name__ == "__main__":
    main()
