"""Clusters of several generations: replicas of one generation each, or stages of different ones within a replica.

In both, all devices of a step wait for the slowest. Replicas share the batch in proportion to their speed, in whole
micro-batches; stages share the layers in proportion to theirs, in whole layers, as far as their memory allows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from moesaic.errors import PlanError
from moesaic.plan.device import Device, device
from moesaic.plan.job import Job
from moesaic.plan.layouts import Array, Layouts
from moesaic.plan.memory import memory_total
from moesaic.plan.quantity import parse_count
from moesaic.plan.shape import Shape
from moesaic.plan.space import Space, grids_of, kernels, pipelines, replicas
from moesaic.plan.stack import Stack
from moesaic.plan.step import PARTS, StepTime, step_time

# Parts of a step that each stage spends on its own micro-batches.
BUSY = tuple(n for n in PARTS if n not in ("pipeline", "bubble", "data_parallel", "optimizer", "pace"))
MOST_COUNTS = 500


@dataclass(frozen=True)
class Group:
    """Devices of one generation."""

    device: Device
    count: int


@dataclass(frozen=True)
class Cluster:
    """What `--hardware` and `--gpus` say; `counts` are the numbers to search for a single generation."""

    groups: tuple[Group, ...]
    counts: tuple[int, ...]


def parse_cluster(hardware: str, gpus: str | None) -> Cluster:
    """`a100-80` with `24960`, `8192,16384` or `24000:25200:120`; or `a100-80:16384,h100:8192`. Raises PlanError."""
    named = [part.partition(":") for part in hardware.split(",")]
    if len(named) == 1 and not named[0][1]:
        if gpus is None:
            raise PlanError(f"how many {named[0][0]}? give --gpus, for example --gpus 24960")
        counts = _counts(gpus)
        return Cluster((Group(device(named[0][0]), max(counts)),), counts)
    if gpus is not None:
        raise PlanError(f"--hardware {hardware} names its devices' numbers; leave --gpus out")
    if any(not colon for _, colon, _ in named):
        raise PlanError(f"--hardware {hardware}: give each generation its number, for example a100-80:16384,h100:8192")
    groups = tuple(Group(device(name), _whole(count, "--hardware")) for name, _, count in named)
    if len({g.device.name for g in groups}) < len(groups):
        raise PlanError(f"--hardware {hardware} names a device twice; add the numbers up")
    return Cluster(groups, (sum(g.count for g in groups),))


def _counts(text: str) -> tuple[int, ...]:
    if ":" in text:
        ends = [_whole(part, "--gpus") for part in text.split(":")]
        if len(ends) not in (2, 3) or ends[0] > ends[1]:
            raise PlanError(f"--gpus {text}: give FIRST:LAST:STEP, for example 24000:25200:120")
        many = range(ends[0], ends[1] + 1, ends[2] if len(ends) == 3 else 8)
        if len(many) > MOST_COUNTS:
            raise PlanError(f"--gpus {text}: {len(many):,} numbers of devices; widen the step to at most {MOST_COUNTS}")
        return tuple(many)
    return tuple(sorted({_whole(part, "--gpus") for part in text.split(",")}))


def _whole(text: str, name: str) -> int:
    value = parse_count(text, name)
    if value != int(value):
        raise PlanError(f"{name} {text}: give a whole number of devices")
    return int(value)


@dataclass(frozen=True)
class Share:
    """What one generation does. Seconds a step, bytes on its fullest device."""

    group: Group
    used: int
    replicas: int
    stages: int
    layers: int  # of a stage at most
    micro_batches: int
    seconds: float  # that its devices would need if none waited for the others
    memory: float


@dataclass(frozen=True)
class Mixed:
    """A layout over several generations."""

    kind: Literal["replicas", "pipeline"]
    layouts: Layouts  # one; dp counts all replicas
    shares: tuple[Share, ...]  # for a pipeline in the order of its stages
    tokens: int  # of a step
    step_s: float

    @property
    def used(self) -> int:
        """Devices that compute."""
        return sum(s.used for s in self.shares)

    @property
    def tokens_per_s(self) -> float:
        """Median, while all is well."""
        return self.tokens / self.step_s

    @property
    def waiting(self) -> float:
        """Share of the busy part of the step that devices wait for the slowest generation, on average over devices."""
        slowest = max(s.seconds for s in self.shares)
        return 1 - sum(s.used * s.seconds for s in self.shares) / (self.used * slowest)


def busy(step: StepTime) -> Array:
    """Seconds of a step in which the slowest stage computes or exchanges activations within itself."""
    total: Array = sum(getattr(step, name) for name in BUSY)
    return total


def narrowest(groups: Sequence[Group]) -> Device:
    """The device with the smallest domain: what divides it divides the others."""
    return min((g.device for g in groups), key=lambda d: d.domain)


def replica_mixed(shape: Shape, job: Job, groups: Sequence[Group], stack: Stack, space: Space) -> Mixed | None:
    """The fastest layout in which each replica is of one generation; None when nothing fits.

    A step of m micro-batches takes a + b m on a generation. With all of them used up at one time T the batch fixes T;
    each generation takes the whole micro-batches (whole rounds, interleaved) below or above, whichever mix is fastest.
    """
    rows, pipes = kernels(shape, narrowest(groups), job.seq_len, space), pipelines(shape)
    own = [replicas(rows, pipes[:, 0], g.count) for g in groups]
    dp = np.where(np.all([d > 0 for d in own], axis=0), sum(own), 0)
    best: Mixed | None = None
    total = sum(g.count for g in groups)
    for grid in grids_of(shape, rows, pipes, dp, job.batch, total, space):
        if not grid.runs.any():
            continue
        L = grid.layouts
        mine = [d[grid.rows][:, grid.pipes][..., None, None, None].astype(float) for d in own]
        with np.errstate(divide="ignore", invalid="ignore"):
            takes, tokens, seconds = _split_batch(shape, job, groups, stack, L, mine)
            speed = np.where(grid.runs & (tokens > 0), tokens / seconds, 0.0)
        for g, m in zip(groups, takes, strict=True):
            if not (speed > (best.tokens_per_s if best else 0.0)).any():
                break
            with np.errstate(divide="ignore", invalid="ignore"):
                bytes_ = memory_total(shape, job, L, stack, m)
            speed = np.where((bytes_ <= g.device.memory_gb * 1e9) & (m > 0), speed, 0.0)
        at = int(np.argmax(speed))
        if speed.flat[at] <= (best.tokens_per_s if best else 0.0):
            continue
        one = L.pick(np.array([at]))
        counts = [int(np.broadcast_to(m, speed.shape).flat[at]) for m in takes]
        dps = [int(np.broadcast_to(d, speed.shape).flat[at]) for d in mine]
        best = _replicas_of(shape, job, groups, stack, one, counts, dps)
    return best


def _split_batch(
    shape: Shape, job: Job, groups: Sequence[Group], stack: Stack, L: Layouts, own: list[Array]
) -> tuple[list[Array], Array, Array]:
    """Micro-batches of a replica of each generation, tokens and seconds of the step."""
    one, two = np.ones(()), 2 * np.ones(())
    first = [step_time(shape, job, L, g.device, stack, micro_batches=one).total for g in groups]
    slope = [
        step_time(shape, job, L, g.device, stack, micro_batches=two).total - f
        for g, f in zip(groups, first, strict=True)
    ]
    start = [f - s for f, s in zip(first, slope, strict=True)]
    room = np.floor(job.batch / L.micro_batch)  # micro-batches of the step
    unit = np.where(L.chunks > 1, L.pp, 1.0)
    end = (room + sum(d * a / b for d, a, b in zip(own, start, slope, strict=True))) / sum(
        d / b for d, b in zip(own, slope, strict=True)
    )
    # Rounded before the floor: equal generations give a quotient that may fall short of a whole number by an ulp.
    low = [np.floor(np.round((end - a) / b / unit, 9)) * unit for a, b in zip(start, slope, strict=True)]
    best: tuple[list[Array], Array, Array] | None = None
    for extra in product((0, 1), repeat=len(groups)):
        m = [np.maximum(x + e * unit, 0) for x, e in zip(low, extra, strict=True)]
        many = sum(d * x for d, x in zip(own, m, strict=True))
        seconds = np.max([a + b * x for a, b, x in zip(start, slope, m, strict=True)], axis=0)
        tokens = np.where(many <= room, many, 0.0) * L.micro_batch * job.seq_len
        if best is None:
            best = m, tokens, seconds
        else:
            better = tokens / seconds > best[1] / best[2]
            m = [np.where(better, x, y) for x, y in zip(m, best[0], strict=True)]
            best = m, np.where(better, tokens, best[1]), np.where(better, seconds, best[2])
    assert best is not None
    return best


def _replicas_of(
    shape: Shape, job: Job, groups: Sequence[Group], stack: Stack, one: Layouts, counts: list[int], dps: list[int]
) -> Mixed:
    row = one.row(0)
    tp, pp, cp, micro = (int(row[n]) for n in ("tp", "pp", "cp", "micro_batch"))
    layers = -(-shape.n_layers // pp)
    shares = []
    for g, m, dp in zip(groups, counts, dps, strict=True):
        given = np.array([float(m)])
        seconds = float(step_time(shape, job, one, g.device, stack, micro_batches=given).total[0])
        bytes_ = float(memory_total(shape, job, one, stack, given)[0])
        shares.append(Share(g, tp * pp * cp * dp, dp, pp, layers, m, seconds, bytes_))
    tokens = sum(m * dp for m, dp in zip(counts, dps, strict=True)) * micro * job.seq_len
    return Mixed("replicas", one, tuple(shares), tokens, max(s.seconds for s in shares))
