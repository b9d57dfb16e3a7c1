"""Bubbles in closed form: the share of a step in which a rank of a pipeline of equal stages idles.

Arguments broadcast over NumPy arrays. Each form equals the simulation of the same schedule where it says so.
"""

from math import ceil, floor

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesaic.errors import PlanError
from moesaic.plan.schedule.orders import KINDS, Kind, orders
from moesaic.plan.schedule.simulate import simulate

Floats = NDArray[np.float64]


def plain_bubble(p: ArrayLike, m: ArrayLike) -> Floats:
    """GPipe and 1F1B: (p - 1) / (m + p - 1) (Narayanan et al. 2021, arXiv:2104.04473, sec. 2.2, over the whole step).

    Exact for every p and m, whatever forward and backward cost.
    """
    return interleaved_bubble(p, m, 1)


def interleaved_bubble(p: ArrayLike, m: ArrayLike, v: ArrayLike) -> Floats:
    """Interleaved 1F1B with v chunks on a rank: (p - 1) / (v m + p - 1) for m >= p (the same paper, sec. 2.2.2).

    Below p a chunk waits until the round's first micro-batch has passed all ranks, so that the step lasts as long as
    p v + m - 1 chunks: 1 - v m / (p v + m - 1). Exact for every m that PyTorch schedules.
    """
    p, m, v = np.asarray(p, float), np.asarray(m, float), np.asarray(v, float)
    return np.asarray(1 - v * m / ((v - 1) * np.maximum(m, p) + m + p - 1))


def zero_bubble(
    p: ArrayLike,
    m: ArrayLike,
    v: ArrayLike = 1,
    forward: ArrayLike = 1.0,
    backward_input: ArrayLike = 1.0,
    weight: ArrayLike = 1.0,
) -> Floats:
    """Split backwards, with an optimizer step for which all ranks wait (clipping needs the norm of all gradients).

    A rank idles (p - 1) x max(F, F + I - W) chunks: Qi et al. 2024 (arXiv:2401.10241, table 1, ZB-H1) divided by v,
    but never less than the p - 1 forwards for which the last rank waits. Exact for `zero_bubble` with m >= p and
    W <= F, and for `zbv` (v = 2) with m >= 2 p - 1 and F = W <= I <= 2 F; with fewer micro-batches a bound from below,
    for other costs an estimate: simulate. ZBV is called bubble-free because its authors let ranks step their
    optimizers one after the other and check the norm afterwards.
    """
    p, m, v = np.asarray(p, float), np.asarray(m, float), np.asarray(v, float)
    f, i, w = np.asarray(forward, float), np.asarray(backward_input, float), np.asarray(weight, float)
    idle = (p - 1) * np.maximum(f, f + i - w)
    return np.asarray(idle / (m * v * (f + i + w) + idle))


def held_micro_batches(kind: Kind, p: ArrayLike, m: ArrayLike, v: ArrayLike = 1) -> Floats:
    """Micro-batches whose activations the fullest rank holds at its peak, counted over all its layers.

    Equals the largest `in_flight` / v: min(m, p) for 1F1B; ((v - 1) w + 2 p - 1) / v for interleaved, where a round has
    w = m // (m // p) micro-batches: p (1 + (p - 1) / (p v)) when m is a multiple of p, more otherwise; ((v - 1) w + p)
    / v with split backwards; m for GPipe; p in ZBV (below m = 2 p - 1 at most that). No schedule holds more than m.
    """
    p, m, v = np.asarray(p, int), np.asarray(m, int), np.asarray(v, int)
    if kind == "gpipe":
        return np.asarray(m + 0 * p, float)
    if kind in ("1f1b", "zbv"):
        return np.asarray(np.minimum(m, p), float)
    width = m // np.maximum(1, m // p)
    chunks = (v - 1) * width + (2 * p - 1 if kind == "interleaved" else p)
    return np.asarray(np.minimum(chunks, m * v) / v)


def step_bubble(kind: Kind, p: int, m: float, v: int = 1) -> float:
    """The bubble of one layout with backward = 2 x forward, halves of it equal: closed where exact, else simulated.

    A fraction of a micro-batch (an average over replicas) is interpolated where the form is not closed.
    Raises PlanError for an unknown schedule or numbers that are not positive.
    """
    if kind not in KINDS:
        raise PlanError(f"no schedule '{kind}'; use one of {', '.join(KINDS)}")
    if min(p, v) < 1 or not m > 0:
        raise PlanError(f"a bubble of {p} ranks, {v} chunks, {m} micro-batches: each must be positive")
    if kind in ("gpipe", "1f1b"):
        return float(plain_bubble(p, m))
    if kind == "interleaved":
        return float(interleaved_bubble(p, m, v))
    v = 2 if kind == "zbv" else v
    enough = 2 * p - 1 if kind == "zbv" else p
    if m >= enough:
        return float(zero_bubble(p, m, v))
    low, high = floor(m), ceil(m)
    ends = [simulate(orders(kind, p, n, v)).bubble if n else 1.0 for n in (low, high)]
    return ends[0] if low == high else ends[0] + (m - low) * (ends[1] - ends[0])
