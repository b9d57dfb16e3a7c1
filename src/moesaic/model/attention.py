"""Grouped- and multi-query attention with rotary positions; packed documents never see each other.

Legend: B sequences, S positions, H query heads, K key/value heads, C head width, D model width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moesaic.model.attend import Visibility, attend
from moesaic.model.cache import KeyValues
from moesaic.model.kernels import RowKernels
from moesaic.model.norm import RMSNorm
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
    """Query, key, value and output projections around scaled dot-product attention."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        inner, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.wq = nn.Parameter(torch.empty(inner, config.d_model))
        self.wk = nn.Parameter(torch.empty(kv, config.d_model))
        self.wv = nn.Parameter(torch.empty(kv, config.d_model))
        self.wo = nn.Parameter(torch.empty(config.d_model, inner))
        self.bq = self.bk = self.bv = self.bo = None
        if config.attention_bias:
            self.bq, self.bk, self.bv = (nn.Parameter(torch.empty(n)) for n in (inner, kv, kv))
            self.bo = nn.Parameter(torch.empty(config.d_model))
        self.q_norm = self.k_norm = None
        if config.qk_norm is not None:
            widths = (inner, kv) if config.qk_norm == "all" else (config.head_dim,) * 2
            self.q_norm, self.k_norm = (RMSNorm(n, config.norm_eps) for n in widths)
        self.clip, self.window = config.clip_qkv, config.window
        self.kernels = RowKernels()
        self.attend = attend  # what turns queries, keys and values into outputs while training

    def forward(
        self,
        x_BSD: Tensor,
        rotary: tuple[Tensor, Tensor],
        sight: Visibility | None,
        cache: KeyValues | None = None,
        start: int = 0,
    ) -> Tensor:
        """Attend over `x` as `sight` allows or, with a cache, over everything cached and causally over `x`."""
        batch, seq, _ = x_BSD.shape
        # One product for all three: a key head of its own is too narrow for the matrix kernels.
        weight = torch.cat((self.wq, self.wk, self.wv)).to(x_BSD.dtype)
        bias = None
        if self.bq is not None and self.bk is not None and self.bv is not None:
            bias = torch.cat((self.bq, self.bk, self.bv)).to(x_BSD.dtype)
        qkv = F.linear(x_BSD, weight, bias).view(batch, seq, -1, self.head_dim)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = _normed(q, self.q_norm), _normed(k, self.k_norm)
        if self.clip is not None:
            q, k, v = (x.clamp(-self.clip, self.clip) for x in (q, k, v))
        q, k = (_Rotate.apply(x, *rotary, self.kernels) for x in (q, k))  # type: ignore[no-untyped-call]
        if sight is not None:
            out_BSHC = self.attend(q, k, v, sight, self.kernels)
        else:
            assert cache is not None
            out_BSHC = cache.attend(start, q, k, v, self.window)
        bias = None if self.bo is None else self.bo.to(x_BSD.dtype)
        return F.linear(out_BSHC.flatten(2), self.wo.to(x_BSD.dtype), bias)


def _normed(x_BSHC: Tensor, norm: RMSNorm) -> Tensor:
    """Normalised over each head, or over all heads together, as wide as the norm's weight is."""
    together = norm.weight.numel() > x_BSHC.shape[-1]
    normed: Tensor = norm(x_BSHC.flatten(2) if together else x_BSHC, x_BSHC.dtype)
    return normed.view(x_BSHC.shape)
