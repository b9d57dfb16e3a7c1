"""What is uncertain, drawn: log-normal inputs, seeded samples, quantiles.

An input is known by its 10 %, 50 % and 90 % quantiles and moves with one standard normal number `z`; inputs of several
scenarios that share a key (the price of power, the pace of a device) share their `z`, so that differences between
scenarios are not drowned in what is common to them.
"""

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesaic.plan.sheet import Z90, Interval

Numbers: TypeAlias = NDArray[np.float64]

SAMPLES, SEED = 4096, 2023


@dataclass(frozen=True)
class Input:
    """A quantity that is not known for sure. What leaves [least, most] is moved back to the nearest of them."""

    key: str
    label: str
    unit: str
    interval: Interval
    source: str
    least: float = 0.0
    most: float = math.inf

    @property
    def certain(self) -> bool:
        """Whether it has no spread."""
        return self.interval.p10 == self.interval.p90

    def at(self, z: Numbers) -> Numbers:
        """Values at standard normal `z`: log-normal, with a spread of its own on either side of the median."""
        low, middle, high = self.interval.p10, self.interval.p50, self.interval.p90
        sigma = np.where(z < 0, math.log(middle / low), math.log(high / middle)) / Z90
        return np.clip(middle * np.exp(z * sigma), self.least, self.most)


def draws(keys: Iterable[str], samples: int = SAMPLES, seed: int = SEED) -> dict[str, Numbers]:
    """Standard normal numbers for each key, `[samples]`, stratified (a Latin hypercube: McKay et al. 1979).

    Each key has a generator of its own, so that an input more does not change the others.
    """
    normal = NormalDist()
    strata = np.array([normal.inv_cdf((i + 0.5) / samples) for i in range(samples)])
    return {key: np.random.default_rng([seed, zlib.crc32(key.encode())]).permutation(strata) for key in sorted(keys)}


def quantiles(values: Numbers) -> Interval:
    """10 %, 50 % and 90 % of samples; infinite ones count as such."""
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9), method="inverted_cdf")
    return Interval(float(low), float(middle), float(high))


def swings(inputs: Mapping[str, Input]) -> tuple[list[str], dict[str, Numbers]]:
    """Uncertain keys, and `z` of each key for [all at medians, first key at p10, at p90, second at p10, ...]."""
    moved = [key for key, i in inputs.items() if not i.certain]
    z = {key: np.zeros(1 + 2 * len(moved)) for key in inputs}
    for n, key in enumerate(moved):
        z[key][1 + 2 * n : 3 + 2 * n] = -Z90, Z90
    return moved, z
