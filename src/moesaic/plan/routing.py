"""What even, random routing does to the experts of a layer: tokens for each, experts met, the busiest group's share."""

from functools import cache
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Numbers: TypeAlias = NDArray[np.float64]


def tokens_per_expert(tokens: float, top_k: int, experts: int) -> float:
    """Tokens of a batch that one expert sees on average; all of them in a dense model (one of one)."""
    return tokens * top_k / experts


@cache
def above_mean(groups: int) -> float:
    """Expected maximum of `groups` standard normal numbers (Blom 1958), 0 for one."""
    return NormalDist().inv_cdf((groups - 0.375) / (groups + 0.25)) if groups > 1 else 0.0


def touched(experts: float, top_k: float, tokens: Numbers | float, groups: int = 1) -> Numbers:
    """Experts of one group out of `groups` that at least one of `tokens` visits, on the busiest group.

    E (1 - (1 - k/E)^B) on average over random routing; with several groups the busiest lies `above_mean`
    standard deviations over its mean, and no group holds more than E/groups.
    """
    share = 1 - (1 - top_k / experts) ** np.asarray(tokens, float)
    mean: Numbers = np.asarray(experts / groups * share)
    if groups == 1:
        return mean
    above = above_mean(groups) * np.sqrt(mean * (1 - share))
    most: Numbers = np.minimum(experts / groups, np.maximum(top_k * np.asarray(tokens, float), mean))
    return np.asarray(np.minimum(mean + above, most))


def busiest_load(top_k: float, tokens: Numbers, groups: int) -> Numbers:
    """Token visits on the busiest of `groups`: the mean and `above_mean` standard deviations (balls in bins)."""
    mean = top_k * tokens / groups
    return mean if groups == 1 else np.minimum(mean + above_mean(groups) * np.sqrt(mean), top_k * tokens)
