"""SwiGLU experts: a short loop as the readable reference, and the fast paths that must equal it.

Legend: T tokens, K experts a token visits, R = T*K routed rows sorted by expert, E experts,
D model width, F inner width.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moesaic.model.kernels import RowKernels
from moesaic.model.passes import keep, kept, wanted
from moesaic.model.router import Routing


def experts_reference(x_TD: Tensor, routing: Routing, w_in_E2FD: Tensor, w_out_EDF: Tensor) -> Tensor:
    """sum over chosen experts of weight * W_out (silu(W_gate x) * W_up x), expert by expert (Shazeer 2020, eq. 6)."""
    out_TD = torch.zeros_like(x_TD)
    for e in range(w_in_E2FD.shape[0]):
        token_R, slot_R = torch.where(routing.experts_TK == e)
        x_RD = x_TD[token_R]
        h_RF = F.silu(F.linear(x_RD, w_in_E2FD[e, 0])) * F.linear(x_RD, w_in_E2FD[e, 1])
        weight_R1 = routing.weights_TK[token_R, slot_R].unsqueeze(-1)
        out_TD = out_TD.index_add(0, token_R, F.linear(h_RF, w_out_EDF[e]) * weight_R1.to(x_TD.dtype))
    return out_TD


def experts_grouped(x_TD: Tensor, routing: Routing, w_in_E2FD: Tensor, w_out_EDF: Tensor) -> Tensor:
    """The same sum with one grouped product over all experts each way, and no wait for the device's counts."""
    flat = routing.experts_TK.flatten()
    order_R = flat.argsort(stable=True)
    # Not bincount, which would ask the device for its largest number.
    ends_E = torch.searchsorted(
        flat[order_R], torch.arange(w_in_E2FD.shape[0], device=flat.device), right=True, out_int32=True
    )
    x_RD = x_TD[order_R // routing.experts_TK.shape[1]]
    w_in, w_out = (w.to(x_TD.dtype).transpose(1, 2) for w in (w_in_E2FD.flatten(1, 2), w_out_EDF))
    gate_RF, up_RF = F.grouped_mm(x_RD, w_in, offs=ends_E).chunk(2, dim=-1)
    weight_R1 = routing.weights_TK.flatten()[order_R].unsqueeze(-1).to(x_TD.dtype)
    y_RD = F.grouped_mm(F.silu(gate_RF) * up_RF * weight_R1, w_out, offs=ends_E)
    place_R = torch.empty_like(order_R).scatter_(0, order_R, torch.arange(len(order_R), device=order_R.device))
    return y_RD[place_R].view(*routing.experts_TK.shape, -1).sum(dim=1)


# Rows of one expert are padded to a multiple of this. oneDNN compiles a kernel per shape: without the padding every
# step brings hundreds of new row counts and 40 % of the product time goes into compiling (docs/lab-log.md).
ROW_MULTIPLE = 16
ALIGNED = 8  # features: what grouped products ask for in 16 bit


# Per expert: hidden activation, gradient before it, gradient of the routing weights.
_Inner = dict[int, tuple[Tensor, Tensor, Tensor]]


class _SortedExperts(torch.autograd.Function):
    """The same sum with rows sorted by expert, a hand-written backward, and every weight gradient written once.

    One pass per expert keeps its rows in cache between the products, which on a CPU beats one grouped product
    followed by element-wise passes over all rows. The routing weight multiplies the hidden activation instead of the
    output: the sum is the same, no copy of the outputs need be kept, and a padding row is a row of weight zero.
    Weights are narrowed expert by expert, in cache, both ways: a whole narrow copy would live until the backward pass,
    one for each micro-batch in flight.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weights_TK: Tensor,
        experts_TK: Tensor,
        w_in_E2FD: Tensor,
        w_out_EDF: Tensor,
        kernels: RowKernels,
    ) -> Tensor:
        dtype, width = x_TD.dtype, w_out_EDF.shape[2]
        order = SortedRows.of(experts_TK, w_in_E2FD.shape[0])
        x_RD = x_TD.index_select(0, order.token_R)
        weight_R = weights_TK.new_zeros(order.rows)
        weight_R[order.place_TK.flatten()] = weights_TK.flatten()
        w_in, w_out = w_in_E2FD.flatten(1, 2), w_out_EDF
        h_RF2 = x_TD.new_empty(order.rows, 2 * width)
        y_RD = torch.empty_like(x_RD)
        for e, rows in order.slices:
            h = torch.mm(x_RD[rows], w_in[e].to(dtype).t(), out=h_RF2[rows])
            torch.mm(kernels.swiglu(h, weight_R[rows]), w_out[e].to(dtype).t(), out=y_RD[rows])
        ctx.save_for_backward(x_RD, h_RF2, weight_R, w_in_E2FD, w_out_EDF)
        ctx.order, ctx.kernels = order, kernels
        return kernels.sum_rows(y_RD, order.place_TK)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x_RD, h_RF2, weight_R, w_in_E2FD, w_out = ctx.saved_tensors
        w_in, dtype, order, kernels = w_in_E2FD.flatten(1, 2), x_RD.dtype, ctx.order, ctx.kernels
        for_inputs, for_weights = wanted(ctx, 0, 1), wanted(ctx, 3, 4)
        before: _Inner | None = kept(ctx, grad_outputs[0]) if for_weights and not for_inputs else None
        inner: _Inner | None = {} if for_inputs and not for_weights and any(ctx.needs_input_grad[3:5]) else None
        dw_in = dw_out = dx_RD = dweight_R = None
        if for_inputs:
            dweight_R = torch.empty(order.rows, dtype=torch.float32, device=x_RD.device)
            dx_RD = torch.empty_like(x_RD)
        if for_weights:
            dw_in = torch.empty_like(w_in)
            dw_out = torch.empty_like(w_out)
            for e in order.idle:  # an expert without tokens learns nothing, but its gradient must exist
                dw_in[e].zero_()
                dw_out[e].zero_()
        dy_RD = grad_outputs[0].to(dtype).index_select(0, order.token_R)
        for e, rows in order.slices:
            dy = dy_RD[rows]
            if before is None:
                a, dh, dweight = kernels.swiglu_backward(h_RF2[rows], weight_R[rows], torch.mm(dy, w_out[e].to(dtype)))
            else:
                a, dh, dweight = before[e]
            if inner is not None:
                inner[e] = (a, dh, dweight)
            if dw_out is not None:
                dw_out[e] = torch.mm(dy.t(), a)
            if dx_RD is not None and dweight_R is not None:
                dweight_R[rows] = dweight
                torch.mm(dh, w_in[e].to(dtype), out=dx_RD[rows])
            if dw_in is not None:
                dw_in[e] = torch.mm(dh.t(), x_RD[rows])
        if inner is not None:
            keep(ctx, grad_outputs[0], inner)
        dx_TD = None if dx_RD is None else kernels.sum_rows(dx_RD, order.place_TK)
        dweights_TK = None if dweight_R is None else dweight_R[order.place_TK]
        dw_in_E2FD = None if dw_in is None else dw_in.unflatten(1, (2, w_out.shape[2]))
        return dx_TD, dweights_TK, None, dw_in_E2FD, dw_out, None


@dataclass(frozen=True)
class SortedRows:
    """Routed rows sorted by expert, each expert's rows padded to a multiple of `ROW_MULTIPLE`."""

    token_R: Tensor  # token that each row copies; padding rows copy token 0 and carry weight 0
    place_TK: Tensor  # row of each (token, choice)
    slices: list[tuple[int, slice]]  # rows of each expert that has any
    idle: list[int]  # experts without a token

    @property
    def rows(self) -> int:
        """Number of rows with padding."""
        return self.token_R.numel()

    @classmethod
    def of(cls, experts_TK: Tensor, n_experts: int) -> "SortedRows":
        """Sort the choices `[tokens, k]` by expert; stable, so tokens keep their order."""
        flat = experts_TK.flatten()
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=n_experts)
        padded = (counts + ROW_MULTIPLE - 1) // ROW_MULTIPLE * ROW_MULTIPLE
        starts = padded.cumsum(0) - padded
        shift = starts - (counts.cumsum(0) - counts)  # how far padding before an expert moves its rows
        place_sorted = torch.arange(flat.numel(), device=flat.device) + shift[flat[order]]
        place_TK = torch.empty_like(flat).scatter_(0, order, place_sorted).view_as(experts_TK)
        sizes, begins = padded.tolist(), starts.tolist()
        token_R = flat.new_zeros(sum(sizes))
        token_R[place_sorted] = order // experts_TK.shape[1]
        slices = [(e, slice(b, b + n)) for e, (b, n) in enumerate(zip(begins, sizes, strict=True)) if n]
        return cls(token_R, place_TK, slices, [e for e, n in enumerate(sizes) if not n])


class Experts(nn.Module):
    """All experts of one layer; with one expert a plain SwiGLU block."""

    def __init__(self, d_model: int, d_ff: int, n_experts: int, bias: bool = False) -> None:
        """`bias` is for a single expert."""
        super().__init__()
        self.w_in = nn.Parameter(torch.empty(n_experts, 2, d_ff, d_model))
        self.w_out = nn.Parameter(torch.empty(n_experts, d_model, d_ff))
        self.b_in = nn.Parameter(torch.empty(2, d_ff)) if bias else None
        self.b_out = nn.Parameter(torch.empty(d_model)) if bias else None
        self.kernels = RowKernels()

    def forward(self, x_TD: Tensor, routing: Routing | None) -> Tensor:
        """Apply the chosen experts to `[tokens, d_model]`; `routing` None means the single dense expert."""
        if routing is None:
            return self._dense(x_TD)
        if x_TD.device.type != "cpu":
            if self.w_in.shape[2] % ALIGNED or self.w_in.shape[3] % ALIGNED:
                return experts_reference(x_TD, routing, self.w_in.to(x_TD.dtype), self.w_out.to(x_TD.dtype))
            return experts_grouped(x_TD, routing, self.w_in, self.w_out)
        out: Tensor = _SortedExperts.apply(  # type: ignore[no-untyped-call]
            x_TD, routing.weights_TK, routing.experts_TK, self.w_in, self.w_out, self.kernels
        )
        return out

    def _dense(self, x_TD: Tensor) -> Tensor:
        gate, up, down = (w.to(x_TD.dtype) for w in (self.w_in[0, 0], self.w_in[0, 1], self.w_out[0]))
        if self.b_in is None or self.b_out is None:
            return F.linear(F.silu(F.linear(x_TD, gate)) * F.linear(x_TD, up), down)
        gate_bias, up_bias, down_bias = (b.to(x_TD.dtype) for b in (*self.b_in, self.b_out))
        return F.linear(F.silu(F.linear(x_TD, gate, gate_bias)) * F.linear(x_TD, up, up_bias), down, down_bias)
