"""One decoder layer: attention, then experts, each behind a norm and added to the residual stream.

Legend: B sequences, S positions, D model width.
"""

import torch
from torch import Tensor, nn

from moesaic.model.attend import Visibility
from moesaic.model.attention import Attention
from moesaic.model.cache import KeyValues
from moesaic.model.experts import Experts
from moesaic.model.norm import RMSNorm
from moesaic.model.router import Router, RouterStats
from moesaic.recipe import Model


class Block(nn.Module):
    """Pre-norm decoder layer. The residual stream keeps its own precision; products run in `compute_dtype`."""

    def __init__(self, config: Model, layer: int) -> None:
        super().__init__()
        n_experts = config.experts_of(layer)
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config)
        self.experts_norm = RMSNorm(config.d_model, config.norm_eps)
        self.router = None
        if n_experts > 1:
            self.router = Router(config.d_model, n_experts, config.top_k, config.norm_top_k)
        self.experts = Experts(config.d_model, config.d_ff_of(layer), n_experts, bias=config.mlp_bias)

    def forward(
        self,
        x_BSD: Tensor,
        rotary: tuple[Tensor, Tensor],
        sight: Visibility | None,
        real_BS: Tensor | None,
        compute_dtype: torch.dtype,
        cache: KeyValues | None = None,
        start: int = 0,
    ) -> tuple[Tensor, RouterStats | None]:
        """Return the new residual stream and, when `real_BS` is given, the router's statistics."""
        normed = self.attention_norm(x_BSD, compute_dtype)
        x_BSD = x_BSD + self.attention(normed, rotary, sight, cache, start)
        normed = self.experts_norm(x_BSD, compute_dtype)
        routing = None if self.router is None else self.router(normed, real_BS)
        out_TD = self.experts(normed.flatten(0, 1), routing)
        return x_BSD + out_TD.view_as(x_BSD), None if routing is None else routing.stats
