"""Grouped- and multi-query attention with rotary positions; packed documents never see each other.

Legend: B sequences, S positions, H query heads, K key/value heads, C head width, D model width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moesaic.model.attend import Visibility, attend, attend_cached
from moesaic.model.cache import LayerCache
from moesaic.model.kernels import RowKernels
from moesaic.recipe import Model


class _Rotate(torch.autograd.Function):
    """The gradient of a rotation is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x_BSHC: Tensor, cos_BSC: Tensor, sin_BSC: Tensor, kernels: RowKernels) -> Tensor:
        ctx.save_for_backward(cos_BSC, sin_BSC)
        ctx.kernels = kernels
        return kernels.rotate(x_BSHC, cos_BSC, sin_BSC)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.kernels.rotate(grad_outputs[0], *ctx.saved_tensors, inverse=True), None, None, None


class Attention(nn.Module):
    """Query, key, value and output projections without bias around scaled dot-product attention."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        inner, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.wq = nn.Parameter(torch.empty(inner, config.d_model))
        self.wk = nn.Parameter(torch.empty(kv, config.d_model))
        self.wv = nn.Parameter(torch.empty(kv, config.d_model))
        self.wo = nn.Parameter(torch.empty(config.d_model, inner))
        self.kernels = RowKernels()

    def forward(
        self,
        x_BSD: Tensor,
        rotary: tuple[Tensor, Tensor],
        sight: Visibility | None,
        cache: LayerCache | None = None,
        start: int = 0,
    ) -> Tensor:
        """Attend over `x` as `sight` allows or, with a cache, over everything cached and causally over `x`."""
        batch, seq, _ = x_BSD.shape
        # One product for all three: a key head of its own is too narrow for the matrix kernels.
        weight = torch.cat((self.wq, self.wk, self.wv)).to(x_BSD.dtype)
        qkv = F.linear(x_BSD, weight).view(batch, seq, -1, self.head_dim)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        q, k = (_Rotate.apply(x, *rotary, self.kernels) for x in (q, k))  # type: ignore[no-untyped-call]
        if sight is not None:
            out_BSHC = attend(q, k, v, sight, self.kernels)
        else:
            assert cache is not None
            out_BSHC = attend_cached(q, *cache.append(start, k.transpose(1, 2), v.transpose(1, 2)))
        return F.linear(out_BSHC.flatten(2), self.wo.to(x_BSD.dtype))
