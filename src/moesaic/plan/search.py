"""The best layouts of a number of devices: memory filter, step times, objectives, Pareto front."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moesaic.plan.device import Device
from moesaic.plan.failures import Faults, outcome
from moesaic.plan.job import Job
from moesaic.plan.layouts import Array, Layouts, join
from moesaic.plan.memory import memory_total
from moesaic.plan.shape import Shape
from moesaic.plan.space import Funnel, Space, grids, some_pipelines
from moesaic.plan.stack import Stack
from moesaic.plan.step import step_time
from moesaic.plan.workload import micro_batches

Objective = Literal["days", "cost", "mfu"]


@dataclass(frozen=True)
class Found:
    """Layouts that run and fit, one at each index of the arrays; all rates are medians.

    A layout is named by its grid and its place there, and only written out for the few that are shown.
    """

    grids: Sequence[Layouts]
    grid: Array
    place: Array
    gpus: Array  # asked for
    used: Array
    tokens_per_s: Array  # while all is well
    goodput: Array  # share of time that is work kept
    memory: Array  # bytes on a device of the heaviest stage

    def __len__(self) -> int:
        return len(self.gpus)

    def __getitem__(self, index: Array | slice) -> "Found":
        return Found(self.grids, *(v[index] for n, v in vars(self).items() if n != "grids"))

    @property
    def speed(self) -> Array:
        """Tokens per second that count, failures included."""
        speed: Array = self.tokens_per_s * self.goodput
        return speed

    @property
    def rate(self) -> Array:
        """Tokens per second of a device that computes, while all is well: MFU is this times a constant."""
        rate: Array = self.tokens_per_s / self.used
        return rate

    @property
    def layouts(self) -> Layouts:
        """The layouts, in order."""
        if not len(self):
            return Layouts.of()[:0]
        return join([self.grids[g].pick(np.array([i])) for g, i in zip(self.grid, self.place, strict=True)])

    def score(self, objective: Objective) -> Array:
        """What to maximise. All devices asked for are paid, those that idle too."""
        return {"days": self.speed, "cost": self.speed / self.gpus, "mfu": self.rate}[objective]

    def best(self, objective: Objective, count: int) -> "Found":
        """The `count` best, the best first; of equals the one that needs less memory."""
        score = self.score(objective)
        index = np.arange(len(self))
        if count < len(self):
            index = np.flatnonzero(score >= np.partition(score, -count)[-count])
        order = np.lexsort((self.memory[index], -score[index]))
        return self[index[order[:count]]]


@dataclass(frozen=True)
class Search:
    """What a search found. `smallest`: bytes and layout that need least memory, whether they fit or not."""

    found: Found
    funnel: Funnel
    smallest: tuple[float, Layouts] | None


def search(
    shape: Shape,
    job: Job,
    device: Device,
    stack: Stack,
    gpus: int,
    space: Space | None = None,
    faults: Faults | None = None,
) -> Search:
    """All layouts of `gpus` devices (or a few less, where they do not divide) that run and fit. Raises PlanError."""
    faults = faults or Faults()
    room = device.memory_gb * 1e9
    funnel, smallest = Funnel(), None
    kept: list[Layouts] = []
    parts: list[tuple[Array, ...]] = []
    for grid in grids(
        shape, device, job.seq_len, job.batch, gpus, space or Space(micro_batches=micro_batches(job.seq_len))
    ):
        funnel = funnel + grid.funnel
        if not grid.runs.any():
            continue
        with np.errstate(divide="ignore", invalid="ignore"):  # where nothing runs
            bytes_ = np.where(grid.runs, memory_total(shape, job, grid.layouts, stack), np.inf)
        at = int(np.argmin(bytes_))
        if smallest is None or bytes_.flat[at] < smallest[0]:
            smallest = float(bytes_.flat[at]), grid.layouts.pick(np.array([at]))
        fits = bytes_ <= room
        pipes = np.flatnonzero(fits.any(axis=(0, 2, 3, 4)))
        if not len(pipes):
            continue
        layouts, fits, bytes_ = some_pipelines(grid.layouts, pipes), fits[:, pipes], bytes_[:, pipes]
        with np.errstate(divide="ignore", invalid="ignore"):
            seconds = step_time(shape, job, layouts, device, stack).total
        tokens = layouts.micro_batches(job.batch) * layouts.dp * layouts.micro_batch * job.seq_len
        place = np.flatnonzero(fits)
        world = np.broadcast_to(layouts.world, fits.shape).reshape(-1)[place]
        speed = np.broadcast_to(tokens / seconds, fits.shape).reshape(-1)[place]
        parts.append((np.full(len(place), len(kept)), place, world, speed, bytes_.reshape(-1)[place]))
        kept.append(layouts)
        funnel = funnel + Funnel(fit=len(place))
    if not parts:
        return Search(Found(kept, *[np.zeros(0)] * 7), funnel, smallest)
    number, place, used, speed, bytes_ = (np.concatenate(p) for p in zip(*parts, strict=True))
    share = goodputs(shape, used, faults)
    return Search(Found(kept, number, place, np.full(len(place), gpus), used, speed, share, bytes_), funnel, smallest)


def goodputs(shape: Shape, devices: Array, faults: Faults) -> Array:
    """Share of time that is work kept, for many numbers of devices: `failures.outcome(...).goodput` of each."""
    sizes, index = np.unique(devices, return_inverse=True)
    return np.array([outcome(shape.total_parameters, int(n), faults).goodput for n in sizes])[index]


def pareto(points: Array) -> Array:
    """Indices of the rows of `points` [n, objectives] that no other row dominates; smaller is better.

    A row dominates another when it is nowhere larger and somewhere smaller; equal rows do not dominate each other.
    """
    left = np.asarray(points, float)
    if not len(left):
        return np.zeros(0, np.int64)
    # Each pass takes the most promising row left and removes all that it dominates.
    low, span = left.min(axis=0), np.ptp(left, axis=0)
    alive = np.argsort(((left - low) / np.where(span > 0, span, 1)).sum(axis=1), kind="stable")
    left, done = left[alive], 0
    while done < len(left):
        keep = (left < left[done]).any(axis=1) | (left == left[done]).all(axis=1)
        done = int(keep[:done].sum()) + 1
        alive, left = alive[keep], left[keep]
    return np.sort(alive)
