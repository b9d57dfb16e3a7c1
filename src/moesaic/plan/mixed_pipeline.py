"""One replica over two generations: each takes stages by its number of devices and layers by its speed and memory."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from moesaic.plan.job import Job
from moesaic.plan.layouts import Array, Layouts
from moesaic.plan.memory import stage_total
from moesaic.plan.mixed import Group, Mixed, Share, busy, narrowest
from moesaic.plan.schedule import Kind, UnevenStep, schedulable, uneven_step
from moesaic.plan.shape import Shape
from moesaic.plan.space import Grid, Space, grids_of, kernels
from moesaic.plan.stack import Stack
from moesaic.plan.step import step_time

# Stages of the faster generation hold at most this many times the layers that its peak over the other's would give.
SLACK = 2.0


def splits(shape: Shape, groups: Sequence[Group], precision: str) -> Array:
    """Rows of pp, chunks, stages of the first and of the second group, layers of a stage of each.

    Stages follow the numbers of devices. Chunks of a stage are equal; the last stage may hold less than its share.
    """
    one, two = groups
    ratio = one.device.peak(precision) / two.device.peak(precision)
    rows = []
    for pp in range(2, shape.n_layers + 1):
        exact = pp * one.count / (one.count + two.count)
        for s1 in sorted({int(np.floor(exact)), int(np.ceil(exact))} - {0, pp}):
            s2 = pp - s1
            for l1 in range(1, (shape.n_layers - s2) // s1 + 1):
                l2 = -(-(shape.n_layers - l1 * s1) // s2)
                if not ratio / SLACK <= l1 / l2 <= ratio * SLACK:
                    continue
                over = s1 * l1 + s2 * l2 - shape.n_layers
                # As in layouts.valid: embedding and head may stand for a layer each where chunks are equal.
                rows += [
                    (pp, v, s1, s2, l1, l2)
                    for v in range(1, min(l1, l2) + 1)
                    if v == 1 or (l1 % v == 0 and l2 % v == 0 and over <= 2)
                ]
    return np.array(rows, dtype=np.int64).reshape(-1, 6)


def pipeline_mixed(shape: Shape, job: Job, groups: Sequence[Group], stack: Stack, space: Space) -> Mixed | None:
    """The fastest layout whose replicas run over both generations; None when nothing fits."""
    rows, pipes = kernels(shape, narrowest(groups), job.seq_len, space), splits(shape, groups, job.precision)
    if not len(pipes):
        return None
    tp, cp, ep, etp = (rows[:, i : i + 1] for i in range(4))
    step = ep * etp // np.gcd(ep * etp, cp * tp)
    dp = np.min([g.count // (tp * cp * pipes[:, 2 + i]) for i, g in enumerate(groups)], axis=0) // step * step
    best: Mixed | None = None
    for grid, split in _grids(shape, rows, pipes, dp, job, sum(g.count for g in groups), space):
        L, (stages, layers) = grid.layouts, split
        runs = grid.runs & _fits(shape, job, groups, stack, L, stages, layers)
        if not runs.any():
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            seconds, _ = uneven_seconds(shape, job, groups, stack, L, stages, layers)
            tokens = L.micro_batches(job.batch) * L.dp * L.micro_batch * job.seq_len
            speed = np.where(runs, tokens / seconds, 0.0)
        at = int(np.argmax(speed))
        if speed.flat[at] > (best.tokens_per_s if best else 0.0):
            pick = np.array([at])
            sizes = [np.broadcast_to(a, speed.shape).reshape(-1)[pick] for a in (*stages, *layers)]
            best = _mixed(shape, job, groups, stack, L.pick(pick), sizes[:2], sizes[2:])
    return best


def _grids(
    shape: Shape, rows: Array, pipes: Array, dp: Array, job: Job, gpus: int, space: Space
) -> Iterator[tuple[Grid, tuple[list[Array], list[Array]]]]:
    """Grids, and for each the stages and the layers of a stage of both groups."""
    # `layouts.valid` speaks of even stages; chunks of uneven ones are checked in `splits`.
    plain = np.where(np.arange(2) == 1, 1, pipes[:, :2])
    for grid in grids_of(shape, rows, plain, dp, job.batch, gpus, space):
        if not grid.runs.any():
            continue
        columns = [pipes[grid.pipes, i].astype(float)[:, None, None, None] for i in range(1, 6)]
        L = replace(grid.layouts, chunks=columns[0])
        yield replace(grid, layouts=L, runs=grid.runs & (L.micro_batches(job.batch) >= 1)), (columns[1:3], columns[3:])


def _fits(
    shape: Shape, job: Job, groups: Sequence[Group], stack: Stack, L: Layouts, stages: list[Array], layers: list[Array]
) -> Array:
    """Whether every stage fits its devices, with the first group in front or behind."""
    with np.errstate(divide="ignore", invalid="ignore"):
        sizes = [_fullest(shape, job, stack, L, stages, layers, front) for front in (0, 1)]
    rooms = [g.device.memory_gb * 1e9 for g in groups]
    ok = [(size[0] <= rooms[0]) & (size[1] <= rooms[1]) for size in sizes]
    fits: Array = ok[0] | ok[1]
    return fits


def _fullest(
    shape: Shape, job: Job, stack: Stack, L: Layouts, stages: list[Array], layers: list[Array], front: int
) -> list[Array]:
    """Bytes on the fullest device of each group when group `front` holds the first stages."""
    back = 1 - front

    def total(layers: Array, position: Array) -> Array:
        return stage_total(shape, job, L, stack, layers, position)

    ahead = np.maximum(total(layers[front], 0 * L.pp), total(layers[front], np.minimum(1.0, stages[front] - 1)))
    behind = np.maximum(total(layers[back], stages[front]), total(layers[back], L.pp - 1))
    return [ahead, behind] if front == 0 else [behind, ahead]


def uneven_seconds(
    shape: Shape, job: Job, groups: Sequence[Group], stack: Stack, L: Layouts, stages: list[Array], layers: list[Array]
) -> tuple[Array, list[Array]]:
    """Seconds of the step, and those in which each group is busy.

    All micro-batches on the slowest stage, the filling as the mean over stages, the slowest of each exchange: for equal
    generations exactly `step_time`.
    """
    times = [step_time(shape, job, L, g.device, stack, layers=n) for g, n in zip(groups, layers, strict=True)]
    work = [busy(t) for t in times]
    fill = sum(s / L.pp * t.bubble for s, t in zip(stages, times, strict=True))
    rest = sum(np.maximum(*(getattr(t, n) for t in times)) for n in ("pipeline", "data_parallel", "optimizer"))
    return stack.pace * (np.maximum(*work) + fill + rest), work


def _mixed(
    shape: Shape,
    job: Job,
    groups: Sequence[Group],
    stack: Stack,
    one: Layouts,
    stages: list[Array],
    layers: list[Array],
) -> Mixed:
    seconds, work = uneven_seconds(shape, job, groups, stack, one, stages, layers)
    m, dp = int(one.micro_batches(job.batch)[0]), int(one.dp[0])
    sizes = [_fullest(shape, job, stack, one, stages, layers, front) for front in (0, 1)]
    fits = [all(float(s[0]) <= g.device.memory_gb * 1e9 for s, g in zip(z, groups, strict=True)) for z in sizes]
    front = 0 if fits[0] else 1
    width = int((one.tp * one.cp * one.dp)[0])
    shares = [
        Share(g, width * int(s[0]), dp, int(s[0]), int(n[0]), m, float(w[0]), float(z[0]))
        for g, s, n, w, z in zip(groups, stages, layers, work, sizes[front], strict=True)
    ]
    tokens = m * dp * int(one.micro_batch[0]) * job.seq_len
    return Mixed("pipeline", one, tuple(shares if front == 0 else shares[::-1]), tokens, float(seconds[0]))


def simulated(mixed: Mixed) -> UnevenStep | None:
    """The pipeline's step operation by operation, backward twice the forward; None where its m is not scheduled."""
    row = mixed.layouts.row(0)
    pp, v, m = int(row["pp"]), int(row["chunks"]), mixed.shares[0].micro_batches
    if mixed.kind != "pipeline" or not schedulable(m, pp, v):
        return None
    each = np.concatenate([np.full(s.stages, s.seconds / m) for s in mixed.shares])
    kind: Kind = "interleaved" if v > 1 else "1f1b"
    return uneven_step(kind, pp, m, v, (each / 3).tolist(), (each * 2 / 3).tolist())
