"""Every layout of a number of devices, as grids.

A grid has five axes: kernel (tp, cp, ep, etp), pipeline (pp, chunks), micro-batch, ZeRO stage, recomputation; dp is
what the devices leave. Formulas broadcast over it, so that a layer is timed once per kernel and micro-batch and not
once per layout, and grids are small enough for the temporaries to stay in cache.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isqrt

import numpy as np

from moesaic.errors import PlanError
from moesaic.plan.device import Device
from moesaic.plan.layouts import FULL, NONE, SELECTIVE, Array, Layouts, valid
from moesaic.plan.shape import Shape

BLOCK = 65_536  # layouts of a grid: 512 KiB for each of the few temporaries of full size
# Tokens of a sequence on one context-parallel rank, unless asked for less: no published run goes below.
MIN_SHARD = 4096


@dataclass(frozen=True)
class Space:
    """What a search may choose from. Everything else follows from the model, the device and their number."""

    max_tp: int | None = None  # default: the domain of the fast link
    max_cp: int | None = None  # default: as many ranks as leave each MIN_SHARD tokens
    micro_batches: tuple[int, ...] = (1, 2, 4, 8)
    zero: tuple[int, ...] = (0, 1, 3)
    recompute: tuple[int, ...] = (NONE, SELECTIVE, FULL)
    idle: float | None = None  # share of the devices that a layout may leave unused; default as `allowed_idle` says

    def __post_init__(self) -> None:
        """Raises PlanError for what cannot be."""
        for name in ("max_tp", "max_cp"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PlanError(f"{name} {value}: give at least 1")
        if self.idle is not None and not 0 <= self.idle < 1:
            raise PlanError(f"idle {self.idle:g}: give a share from 0 to below 1, for example 0.02")

    def allowed_idle(self, gpus: int) -> float:
        """Devices that may stay unused: 2 %, but always what is left of a node of eight."""
        return max(0.02 * gpus, 7) if self.idle is None else self.idle * gpus


@dataclass(frozen=True)
class Funnel:
    """How many layouts each rule left, in the order in which they are applied."""

    enumerated: int = 0  # with degrees that divide the model and the node
    whole: int = 0  # whose replicas fill the devices but for the idle share allowed
    fed: int = 0  # each replica gets a micro-batch (interleaved: a whole round), and experts fold over its ranks
    fit: int = 0  # in memory

    def __add__(self, other: "Funnel") -> "Funnel":
        return Funnel(*(getattr(self, n) + getattr(other, n) for n in vars(self)))


@dataclass(frozen=True)
class Grid:
    """Layouts that broadcast, which of them run, and how many were set aside."""

    layouts: Layouts
    runs: Array
    funnel: Funnel
    rows: slice  # its kernels and pipelines among all
    pipes: Array


def kernels(shape: Shape, device: Device, seq_len: int, space: Space) -> Array:
    """Rows of tp, cp, ep, etp that divide the model, the sequence and the node."""
    most_tp, most_cp = space.max_tp or device.domain, space.max_cp or max(1, seq_len // MIN_SHARD)
    # A tensor-parallel group neither straddles two nodes nor leaves devices of its own unused.
    tps = [n for n in divisors(shape.n_heads) if n <= most_tp and (device.domain % n == 0 or n % device.domain == 0)]
    tps = [n for n in tps if _width(shape) % n == 0]
    rows = [
        (tp, cp, ep, etp)
        for tp in tps
        for cp in divisors(seq_len)
        if cp <= most_cp
        for ep in divisors(shape.n_experts)
        for etp in sorted({tp} if shape.n_experts == 1 else {1, tp})
        if etp == 1 or shape.n_experts == 1 or shape.d_expert % etp == 0
    ]
    made = np.array(rows, dtype=np.int64)
    ok = valid(shape, Layouts.of(tp=made[:, 0], dp=made[:, 2] * made[:, 3], ep=made[:, 2], etp=made[:, 3]), 1 << 40)
    return made[ok]


def _width(shape: Shape) -> int:
    """What tensor parallelism must divide beside the heads."""
    widths = [shape.d_model, shape.d_shared]
    if shape.sparse_layers < shape.n_layers:
        widths.append(shape.d_ff)
    return int(np.gcd.reduce(widths))


def pipelines(shape: Shape) -> Array:
    """Rows of pp and chunks that the layers allow."""
    rows = [(pp, v) for pp in range(1, shape.n_layers + 1) for v in range(1, (shape.n_layers + 2) // pp + 1)]
    made = np.array(rows, dtype=np.int64)
    return made[valid(shape, Layouts.of(pp=made[:, 0], chunks=made[:, 1]), 1 << 40)]


def replicas(rows: Array, pp: Array, gpus: int) -> Array:
    """Most replicas of `pp` stages that `gpus` hold, for each kernel [kernels, 1]; experts must fold over them."""
    tp, cp, ep, etp = (rows[:, i : i + 1] for i in range(4))
    step = ep * etp // np.gcd(ep * etp, cp * tp)
    out: Array = gpus // (tp * cp * pp) // step * step
    return out


def grids(shape: Shape, device: Device, seq_len: int, batch: int, gpus: int, space: Space) -> Iterator[Grid]:
    """All layouts of `gpus` devices. Raises PlanError for a number that is not positive."""
    if gpus < 1:
        raise PlanError(f"{gpus} devices: give at least 1")
    rows, pipes = kernels(shape, device, seq_len, space), pipelines(shape)
    yield from grids_of(shape, rows, pipes, replicas(rows, pipes[:, 0], gpus), batch, gpus, space)


def whole(rows: Array, pipes: Array, dp: Array, gpus: int, space: Space) -> Array:
    """Where replicas exist and leave no more devices idle than allowed."""
    used = rows[:, :1] * rows[:, 1:2] * pipes[:, 0] * dp
    out: Array = (dp > 0) & (gpus - used <= space.allowed_idle(gpus))
    return out


def grids_of(shape: Shape, rows: Array, pipes: Array, dp: Array, batch: int, gpus: int, space: Space) -> Iterator[Grid]:
    """Layouts of kernels `rows`, `pipes` (pp, chunks) and their replicas `dp` [kernels, pipes]."""
    full = whole(rows, pipes, dp, gpus, space)
    micro, zero, recompute = (np.array(v, float) for v in (space.micro_batches, space.zero, space.recompute))
    inner = len(micro) * len(zero) * len(recompute)
    step = max(1, BLOCK // (len(pipes) * inner))
    for at in range(0, len(rows), step):
        block = slice(at, at + step)
        here = np.flatnonzero(full[block].any(axis=0))
        kept = full[block][:, here]
        deep = (..., None, None, None)  # axes of micro-batch, ZeRO and recomputation
        layouts = Layouts(
            **{n: rows[block, i, None].astype(float)[deep] for i, n in enumerate(("tp", "cp", "ep", "etp"))},
            **{n: pipes[here, i].astype(float)[deep] for i, n in enumerate(("pp", "chunks"))},
            dp=np.maximum(dp[block][:, here], 1).astype(float)[deep],
            micro_batch=micro[:, None, None],
            zero=zero[:, None],
            recompute=recompute,
        )
        fed = valid(shape, layouts, batch) & kept[deep]
        runs = np.broadcast_to(fed, (*fed.shape[:3], len(zero), len(recompute)))
        funnel = Funnel(full[block].size * inner, int(kept.sum()) * inner, int(fed.sum()) * len(zero) * len(recompute))
        yield Grid(layouts, runs, funnel, block, here)


def some_pipelines(grid: Layouts, index: Array) -> Layouts:
    """The grid with only those of its pipelines."""
    return replace(grid, dp=grid.dp[:, index], pp=grid.pp[index], chunks=grid.chunks[index])


def divisors(n: int) -> list[int]:
    """All divisors, ascending."""
    small = [d for d in range(1, isqrt(n) + 1) if n % d == 0]
    return small + [n // d for d in reversed(small) if d * d != n]
