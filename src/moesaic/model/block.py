"""One decoder layer: attention, then experts, each behind a norm and added to the residual stream.

Legend: B sequences, S positions, D model width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from moesaic.model.attend import Visibility
from moesaic.model.attention import Attention
from moesaic.model.cache import LayerCache
from moesaic.model.experts import Experts
from moesaic.model.kernels import RowKernels
from moesaic.model.router import Router, RouterStats
from moesaic.recipe import Model


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, kernels: RowKernels) -> Tensor:
        y, rstd = kernels.rms_norm(x, weight, eps, dtype)
        ctx.save_for_backward(x, weight, rstd)
        ctx.kernels = kernels
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        dx, dweight = ctx.kernels.rms_norm_backward(*ctx.saved_tensors, grad_outputs[0].contiguous())
        return dx, dweight, None, None, None


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (Zhang & Sennrich 2019), computed in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self.kernels = RowKernels()

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Normalise `[..., width]` and return it in `dtype`."""
        y: Tensor = _RMSNorm.apply(x, self.weight, self.eps, dtype, self.kernels)  # type: ignore[no-untyped-call]
        return y


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
        normed = self.attention_norm(x_BSD, compute_dtype)
        x_BSD = x_BSD + self.attention(normed, rotary, sight, cache, start)
        normed = self.experts_norm(x_BSD, compute_dtype)
        routing = None if self.router is None else self.router(normed, real_BS)
        out_TD = self.experts(normed.flatten(0, 1), routing)
        return x_BSD + out_TD.view_as(x_BSD), None if routing is None else routing.stats
