"""How much of the time a machine that breaks gets work done: failures, checkpoint intervals, goodput, spares.

Failures come at random at a constant rate (a Poisson process). All times are in seconds; every function takes numbers
or NumPy arrays that broadcast.
"""

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesaic.errors import PlanError

Real: TypeAlias = "float | NDArray[np.float64]"

LLAMA3_RATE = 419 / (54 * 24 * 16_384)
"""Unexpected interruptions per GPU-hour: 419 in 54 days on 16,384 H100 (Llama 3, arXiv:2407.21783, sec. 3.3.4)."""

LLAMA3_STORAGE = 2e12
"""Bytes/s that the storage of Llama 3 sustains, 7e12 at its peak (arXiv:2407.21783, sec. 3.3.1)."""

STATE_BYTES = 14.0
"""Bytes of a checkpoint per parameter: bf16 weights 2, fp32 master weights 4 and two Adam moments 8."""


def mtti(rate: Real, devices: Real) -> Real:
    """Mean time to interruption in seconds, from failures per device-hour and devices."""
    return 3600 / (np.asarray(rate) * devices)


def young(checkpoint: Real, mean: Real) -> Real:
    """Work between checkpoints that minimises the first-order loss (Young 1974): sqrt(2 C M).

    `checkpoint` is the time that training stands still for one, `mean` the mean time to interruption.
    """
    return np.sqrt(2 * np.asarray(checkpoint) * mean)


def daly(checkpoint: Real, mean: Real) -> Real:
    """The same to higher order (Daly 2006, FGCS 22(3), eq. 37): it stays right when checkpoints are not short."""
    x = np.sqrt(np.asarray(checkpoint) / (2 * np.asarray(mean)))
    return np.where(x < 1, young(checkpoint, mean) * (1 + x / 3 + x**2 / 9) - checkpoint, mean)


def goodput(interval: Real, checkpoint: Real, mean: Real, down: Real) -> Real:
    """Share of time that is work kept, exactly: tau / (M e^(R/M) (e^((tau+C)/M) - 1)), Daly 2006's complete model.

    A segment of `interval` work and its checkpoint is run again until no failure hits it; each failure costs `down`
    (detection and restart), which starts again when a failure hits that too.
    """
    mean = np.asarray(mean)
    with np.errstate(over="ignore"):  # hopeless: an infinite time, goodput 0
        wall = mean * np.exp(down / mean) * np.expm1((np.asarray(interval) + checkpoint) / mean)
    return np.asarray(interval / wall)


def save_interval_steps(mtbf: float, blocked: float, step: float, at_most: int, write: float = 0.0) -> int:
    """Optimizer steps between checkpoints by Daly's interval, between 1 and `at_most`.

    `mtbf`: mean time between failures. `blocked`: how long training stands still for a save. `step`: one optimizer
    step. `write`: until a save that goes on behind training is safe; the next one does not begin before. All measured,
    in seconds. Raises PlanError for a time that cannot be.
    """
    if not (mtbf > 0 and step > 0 and blocked >= 0 and write >= 0 and at_most >= 1):
        raise PlanError(
            f"a save interval from {mtbf:g} s between failures, {blocked:g} s a save, {step:g} s a step, at most "
            f"{at_most} steps: give times above 0 and at least 1 step"
        )
    seconds = max(float(daly(blocked, mtbf)), write)
    return max(1, min(at_most, round(seconds / step))) if math.isfinite(seconds) else at_most


def goodput_first_order(interval: Real, checkpoint: Real, mean: Real, down: Real) -> Real:
    """The back-of-the-envelope form: 1 - C/tau - tau/(2M) - R/M, at least 0. Good while all three are small."""
    mean, interval = np.asarray(mean), np.asarray(interval)
    return np.maximum(0, 1 - checkpoint / interval - interval / (2 * mean) - down / mean)


def checkpoint_time(state: Real, aggregate: Real = np.inf, devices: Real = 1, per_device: Real = np.inf) -> Real:
    """Seconds to write `state` bytes: the storage takes `aggregate` bytes/s in all, each device sends `per_device`.

    Each device writes its own share once; replicas of weights are not written twice.
    """
    return np.maximum(np.asarray(state) / aggregate, np.asarray(state) / (np.asarray(devices) * per_device))


def slow_share(rate: Real, devices: Real, found: Real, slowdown: Real) -> Real:
    """Share of time lost to slow devices: all wait for the slowest while at least one is slow.

    `rate` is new slow devices per device-hour, `found` the seconds until one is found and taken out, `slowdown` how
    much longer a step takes meanwhile (0.1: ten percent). The number of slow ones is Poisson (M/G/infinity).
    """
    some = -np.expm1(-np.asarray(rate) * devices * np.asarray(found) / 3600)
    return np.asarray(some * (1 - 1 / (1 + np.asarray(slowdown))))


def spares(rate: float, devices: int, repair: float, confidence: float = 0.99) -> int:
    """Fewest spare nodes that suffice at any moment with probability `confidence`.

    Nodes under repair are Poisson with mean `rate x devices x repair` (M/G/infinity: whatever the repair times'
    spread). `rate` is per device-hour, `repair` in seconds; one failure takes a whole node out. Raises PlanError.
    """
    if not 0 < confidence < 1:
        raise PlanError(f"confidence {confidence:g}: give a probability between 0 and 1, for example 0.99")
    expected = rate * devices * repair / 3600
    if expected == 0:
        return 0
    first = max(math.floor(expected - 12 * math.sqrt(expected)), 0)  # what lies below has no weight
    many = np.arange(first, math.ceil(expected + 12 * math.sqrt(expected) + 40))
    log_factorial = math.lgamma(first + 1) + np.concatenate(([0.0], np.cumsum(np.log(many[1:]))))
    below = np.cumsum(np.exp(many * math.log(expected) - expected - log_factorial))
    return int(first + np.searchsorted(below, confidence))
