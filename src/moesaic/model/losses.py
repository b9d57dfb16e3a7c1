"""Auxiliary losses of the router: statistics in, loss out. Their definition does not depend on the layout.

Legend: L layers, B sequences, E experts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moesaic.model.router import RouterStats


def balance_loss(stats: RouterStats, top_k: int, load_E: Tensor | None = None) -> Tensor:
    """Load-balance loss of one layer, summed over sequences (Fedus et al. 2021, eq. 4; per sequence as in DeepSeek-V3).

    `E * sum_e f_e P_e`, where P is the mean probability of the sequence and f the share of assignments: of the same
    sequence by default, or `load_E`, the shares of the whole previous global batch. Equals 1 at perfect balance.
    The sum is divided by the global number of sequences by the caller, who knows it.
    """
    n_experts = stats.counts_BE.shape[-1]
    tokens_B1 = stats.tokens_B.clamp(min=1).unsqueeze(-1)
    mean_probability_BE = stats.probability_sum_BE / tokens_B1
    share_BE = stats.counts_BE / (tokens_B1 * top_k) if load_E is None else load_E.expand_as(mean_probability_BE)
    return n_experts * (share_BE.detach() * mean_probability_BE).sum()


def z_loss(stats: RouterStats) -> Tensor:
    """Router z-loss of one layer (Zoph et al. 2022, eq. 5): mean over a sequence's tokens, summed over sequences."""
    return (stats.z_sum_B / stats.tokens_B.clamp(min=1)).sum()


def expert_load(stats: Sequence[RouterStats]) -> Tensor:
    """Assignments per layer and expert, `[layers, experts]`, over all sequences given."""
    return torch.stack([s.counts_BE.sum(dim=0) for s in stats])
