"""Next-token loss without ever holding all logits: chunks of rows, gradients computed with the loss.

Legend: T tokens, D model width, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moesaic.model.kernels import RowKernels
from moesaic.model.passes import wanted

IGNORE = -100
CHUNK = 512  # rows: their logits stay in cache; see docs/lab-log.md


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, head_VD: Tensor, labels_T: Tensor, kernels: RowKernels) -> Tensor:
        dtype = hidden_TD.dtype
        head = head_VD.to(dtype)
        d_hidden = torch.empty_like(hidden_TD)
        d_head = torch.zeros(head_VD.shape, dtype=torch.float32, device=head_VD.device)
        loss = torch.zeros((), dtype=torch.float32, device=hidden_TD.device)
        for lo in range(0, hidden_TD.shape[0], CHUNK):
            rows = hidden_TD[lo : lo + CHUNK]
            here, d_logits_TV = kernels.cross_entropy(torch.mm(rows, head.t()), labels_T[lo : lo + CHUNK])
            loss += here
            torch.mm(d_logits_TV, head, out=d_hidden[lo : lo + CHUNK])
            d_head += torch.mm(d_logits_TV.t(), rows)
        ctx.save_for_backward(d_hidden, d_head)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_head = ctx.saved_tensors
        scale = grad_outputs[0]
        return (
            # In bf16 the scale itself would be off by up to 0.4 %, for the body and not for the head.
            (d_hidden.float() * scale).to(d_hidden.dtype) if wanted(ctx, 0) else None,
            d_head * scale if wanted(ctx, 1) else None,
            None,
            None,
        )


def next_token_loss(hidden_TD: Tensor, head_VD: Tensor, labels_T: Tensor, kernels: RowKernels | None = None) -> Tensor:
    """Sum of cross entropies in nats over labels that are not -100; equals `next_token_loss_reference`."""
    loss: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_TD, head_VD, labels_T, kernels or RowKernels()
    )
    return loss


def next_token_loss_reference(hidden_TD: Tensor, head_VD: Tensor, labels_T: Tensor) -> Tensor:
    """The same sum, all logits at once."""
    logits_TV = F.linear(hidden_TD, head_VD.to(hidden_TD.dtype)).float()
    return F.cross_entropy(logits_TV, labels_T, ignore_index=IGNORE, reduction="sum")
