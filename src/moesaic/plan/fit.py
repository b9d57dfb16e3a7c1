"""Calibration: constants of a stack from measured runs, held back by what is known of them beforehand.

Minimises robust squares of log(predicted / measured), each run weighted by how many come from its source, plus squares
of the distance of each constant from its prior: a maximum a posteriori estimate. Needs scipy (`moesaic[fit]`).
"""

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesaic.errors import PlanError
from moesaic.plan.layouts import Array
from moesaic.plan.published import HALF, Trial, settings
from moesaic.plan.stack import read_stacks

Table = dict[str, Any]
NOISE = 0.06  # relative error of a published time that the fit does not chase
NOISE_LOW = 0.12  # the same below 16 bit, where only some products are in low precision
OUTLIER = 1.5  # residuals beyond this many standard deviations count linearly
CROWD = 0.35  # n runs of one source weigh n^(1 - 2 x 0.35) runs


@dataclass(frozen=True)
class Free:
    """A constant that may move: its path in the file of stacks, and the standard deviation of its logarithm."""

    path: tuple[str, ...]
    sd: float

    def read(self, table: Mapping[str, Any]) -> float:
        """Its value in `table`; what a stack does not set is common."""
        here: Any = table
        for key in self.path[:-1]:
            here = here[key]
        return float(here.get(self.path[-1], table["common"].get(self.path[-1])))

    def write(self, table: Table, value: float) -> None:
        """Set it in `table`."""
        here: Any = table
        for key in self.path[:-1]:
            here = here[key]
        here[self.path[-1]] = value

    @property
    def limit(self) -> float:
        """Largest value: efficiencies and exposed shares are fractions."""
        bounded = self.path[-1].startswith("exposed") or self.path[-1] in (
            "memory",
            "domain",
            "network",
            "low_precision",
        )
        return 1.0 if bounded or self.path[-2] in ("gemm", "attention") else math.inf


def log_ratios(table: Mapping[str, Any], trials: Sequence[Trial]) -> Array:
    """log(predicted / measured) of each run."""
    stacks = read_stacks(table)
    return np.array([math.log(t.best(settings(t.row, stacks[t.stack]))[1] / t.published_seconds()) for t in trials])


def fit(
    table: Mapping[str, Any], trials: Sequence[Trial], free: Sequence[Free], crowd: float = CROWD, far: float = 0.0
) -> Table:
    """`table` with the free constants calibrated on `trials`. Raises PlanError without scipy or runs.

    The search begins at the priors; with `far`, also that many standard deviations below each in turn: the slower of
    two links hides the faster, whose rate then moves nothing until it is the slower one.
    """
    try:
        from scipy.optimize import least_squares
    except ImportError as error:
        raise PlanError("calibrating needs scipy; install it with: pip install 'moesaic[fit]'") from error
    if not trials:
        raise PlanError("no run can be compared: each needs its layout, batch, sequence length and a rate or time")
    company = Counter(t.row["source"][:40] for t in trials)
    noise = np.array([NOISE if t.row["precision"] in HALF else NOISE_LOW for t in trials])
    weight = np.array([company[t.row["source"][:40]] ** -crowd for t in trials]) / noise
    start = np.log([f.read(table) for f in free])
    limit = np.log([max(f.limit, f.read(table)) for f in free]) + 1e-9

    def moved(x: Array) -> Table:
        changed = copy.deepcopy(dict(table))
        for f, value in zip(free, x, strict=True):
            f.write(changed, float(np.exp(value)))
        return changed

    def residuals(x: Array) -> Array:
        prior = (x - start) / [f.sd for f in free]
        return np.concatenate([log_ratios(moved(x), trials) * weight, prior])

    def search(begin: Array) -> Any:
        bounds = (-np.inf, limit)
        return least_squares(
            residuals, begin, loss="soft_l1", f_scale=OUTLIER, bounds=bounds, diff_step=1e-3, max_nfev=30
        )

    begins = [start] + [start - far * f.sd * (np.arange(len(free)) == i) for i, f in enumerate(free) if far]
    found = min((search(begin) for begin in begins), key=lambda one: one.cost)
    out = moved(found.x)
    for f, value in zip(free, found.x, strict=True):
        f.write(out, float(f"{math.exp(value):.3g}"))
    return out


def residual_sigma(ratios: Array, prior: float, worth: float = 4.0) -> float:
    """Standard deviation of log ratios, as if `worth` further runs had shown `prior`; an outlier counts as one run."""
    if not len(ratios):
        return prior
    seen = 1.4826 * float(np.median(np.abs(ratios)))
    return math.sqrt((len(ratios) * seen**2 + worth * prior**2) / (len(ratios) + worth))
