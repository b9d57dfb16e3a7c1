"""One decoder layer: attention, then experts, each behind a norm and added to the residual stream.

Legend: B sequences, S positions, D model width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moesaic.model.attend import Visibility
from moesaic.model.attention import Attention
from moesaic.model.cache import LayerCache
from moesaic.model.experts import Experts
from moesaic.model.router import Router, RouterStats
from moesaic.recipe import Model


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (Zhang & Sennrich 2019), computed in the input's precision."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class Block(nn.Module):
    """Pre-norm decoder layer. The residual stream keeps its own precision; products run in `compute_dtype`."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config)
        self.experts_norm = RMSNorm(config.d_model, config.norm_eps)
        self.router = Router(config.d_model, config.n_experts, config.top_k) if config.n_experts > 1 else None
        self.experts = Experts(config)

    def forward(
        self,
        x_BSD: Tensor,
        rotary: tuple[Tensor, Tensor],
        sight: Visibility | None,
        real_BS: Tensor | None,
        compute_dtype: torch.dtype,
        cache: LayerCache | None = None,
        start: int = 0,
    ) -> tuple[Tensor, RouterStats | None]:
        """Return the new residual stream and, when `real_BS` is given, the router's statistics."""
        normed = self.attention_norm(x_BSD).to(compute_dtype)
        x_BSD = x_BSD + self.attention(normed, rotary, sight, cache, start)
        normed = self.experts_norm(x_BSD)
        routing = None if self.router is None else self.router(normed, real_BS)
        out_TD = self.experts(normed.flatten(0, 1).to(compute_dtype), routing)
        return x_BSD + out_TD.view_as(x_BSD), None if routing is None else routing.stats
