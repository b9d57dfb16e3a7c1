"""Speculative decoding: a small model drafts, the large one checks all drafts in one pass.

With acceptance a and g drafts a check yields (1 - a^(g+1)) / (1 - a) tokens (Leviathan et al. 2023, arXiv:2211.17192,
eq. 1). The textbook speed-up divides by g c + 1, as if a check cost as much as a step. In a sparse model g + 1 tokens
of each sequence visit more experts than one does, so the check is charged its own roofline.
"""

import numpy as np

from moesaic.errors import PlanError
from moesaic.plan.routing import Numbers
from moesaic.plan.serving.batching import ReplicaTimer


def tokens_per_check(accept: float, drafts: int) -> float:
    """Expected tokens of one check, the large model's own included. Raises PlanError."""
    if not 0 <= accept <= 1:
        raise PlanError(f"acceptance {accept:g}: give a share from 0 to 1")
    if drafts < 1:
        raise PlanError(f"{drafts} drafts: give at least 1")
    return drafts + 1.0 if accept == 1 else (1 - accept ** (drafts + 1)) / (1 - accept)


def textbook_speedup(accept: float, drafts: int, cost: float) -> float:
    """(1 - a^(g+1)) / ((1 - a)(g c + 1)); `cost` is a draft step as a share of a step of the large model."""
    if cost < 0:
        raise PlanError(f"draft cost {cost:g}: give a share of a step, 0 or more")
    return tokens_per_check(accept, drafts) / (drafts * cost + 1)


def speedup(
    timer: ReplicaTimer, sequences: Numbers, context: Numbers, accept: float, drafts: int, cost: float
) -> Numbers:
    """Tokens per second with drafts over without, when the check of g + 1 tokens costs what it reads and computes."""
    step = timer.step(sequences, context)
    check = timer.step(sequences, context, drafts + 1)
    return np.asarray(tokens_per_check(accept, drafts) * step / (drafts * cost * step + check))
