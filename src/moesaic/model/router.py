"""The router: softmax over a linear map, the k largest, usually renormalised; and what it tells the balance loss.

Legend: T tokens, B sequences, E experts, K experts a token visits, D model width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class RouterStats:
    """Statistics of one layer from which the balance and z losses are pure functions.

    All sums are over the non-padding tokens of a sequence, so that they add up over any split of it.
    """

    counts_BE: Tensor  # assignments per expert, no gradient
    probability_sum_BE: Tensor  # sum of router probabilities
    z_sum_B: Tensor  # sum of squared log-partition functions
    tokens_B: Tensor  # non-padding tokens


@dataclass(frozen=True)
class Routing:
    """Where each token goes: `experts_TK` indices and `weights_TK` fp32, whose rows sum to one if renormalised."""

    experts_TK: Tensor
    weights_TK: Tensor
    stats: RouterStats | None


class Router(nn.Module):
    """Simple top-k routing. Logits and softmax are fp32: near ties decide which expert runs."""

    def __init__(self, d_model: int, n_experts: int, top_k: int, renormalise: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_experts, d_model))
        self.top_k, self.renormalise = top_k, renormalise

    def forward(self, x_BSD: Tensor, real_BS: Tensor | None = None) -> Routing:
        """Route `[batch, seq, d_model]`; `real_BS` marks tokens that are not padding (None: no statistics)."""
        logits_BSE = F.linear(x_BSD.float(), self.weight.float())
        log_z_BS = torch.logsumexp(logits_BSE, dim=-1)
        probabilities_BSE = torch.exp(logits_BSE - log_z_BS.unsqueeze(-1))
        top_BSK, experts_BSK = probabilities_BSE.topk(self.top_k, dim=-1)
        weights_BSK = top_BSK / top_BSK.sum(dim=-1, keepdim=True) if self.renormalise else top_BSK
        stats = None
        if real_BS is not None:
            real = real_BS.to(probabilities_BSE.dtype)
            chosen_BSE = torch.zeros_like(probabilities_BSE).scatter_(-1, experts_BSK, 1.0)
            stats = RouterStats(
                counts_BE=torch.einsum("bse,bs->be", chosen_BSE, real),
                probability_sum_BE=torch.einsum("bse,bs->be", probabilities_BSE, real),
                z_sum_B=(log_z_BS.square() * real).sum(dim=-1),
                tokens_B=real.sum(dim=-1),
            )
        return Routing(experts_BSK.flatten(0, 1), weights_BSK.flatten(0, 1), stats)
