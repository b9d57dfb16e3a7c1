"""RMSNorm with a hand-written gradient, through the row kernels."""

from typing import Any

import torch
from torch import Tensor, nn

from moesaic.model.kernels import RowKernels
from moesaic.model.passes import keep, kept, wanted


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, kernels: RowKernels) -> Tensor:
        y, rstd = kernels.rms_norm(x, weight, eps, dtype)
        ctx.save_for_backward(x, weight, rstd)
        ctx.kernels = kernels
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        for_x, for_weight = wanted(ctx, 0), wanted(ctx, 1)
        if for_weight and not for_x and (dweight := kept(ctx, grad_outputs[0])) is not None:
            return None, dweight, None, None, None
        dx, dweight = ctx.kernels.rms_norm_backward(*ctx.saved_tensors, grad_outputs[0].contiguous())
        if for_x and not for_weight and ctx.needs_input_grad[1]:  # both come out of one pass over the rows
            keep(ctx, grad_outputs[0], dweight)
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
