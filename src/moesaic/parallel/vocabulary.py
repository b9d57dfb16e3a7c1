"""Embedding and loss with the vocabulary dealt out over tensor ranks (Shoeybi et al. 2019, sec. 3).

Legend: T tokens, D model width, V vocabulary, U this rank's part of it.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from moesaic.model.next_token import CHUNK
from moesaic.model.passes import wanted
from moesaic.parallel.collectives import max_, sum_


def _own(tokens: Tensor, rows: int, group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """Index of each token among this rank's `rows`, and whether it is there at all."""
    index = tokens - dist.get_rank(group) * rows
    here = (index >= 0) & (index < rows)
    return index.where(here, 0), here


def embed_shared(tokens_BC: Tensor, embedding_UD: Tensor, group: ProcessGroup) -> Tensor:
    """Rows of the tokens that are this rank's, zero for the others: a term of the sum that is the embedding."""
    index, here = _own(tokens_BC, embedding_UD.shape[0], group)
    return F.embedding(index, embedding_UD) * here.unsqueeze(-1)


def vocabulary_loss(hidden_TD: Tensor, head_UD: Tensor, labels_T: Tensor, group: ProcessGroup) -> Tensor:
    """Sum of cross entropies in nats over labels that are not -100, the same on every rank; see `next_token_loss`.

    The gradient of `hidden` is this rank's term of a sum.
    """
    loss: Tensor = _VocabularyLoss.apply(hidden_TD, head_UD, labels_T, group)  # type: ignore[no-untyped-call]
    return loss


class _VocabularyLoss(torch.autograd.Function):
    """In chunks of rows, gradients computed with the loss, as in the loss of one process."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, head_UD: Tensor, labels_T: Tensor, group: ProcessGroup) -> Tensor:
        head = head_UD.to(hidden_TD.dtype)
        d_hidden = torch.empty_like(hidden_TD)
        d_head = torch.zeros(head_UD.shape, dtype=torch.float32, device=head_UD.device)
        loss = torch.zeros((), dtype=torch.float32, device=hidden_TD.device)
        for lo in range(0, hidden_TD.shape[0], CHUNK):
            rows, labels = hidden_TD[lo : lo + CHUNK], labels_T[lo : lo + CHUNK]
            index_T, here_T = _own(labels, head.shape[0], group)
            logits_TU = torch.mm(rows, head.t()).float()
            logits_TU -= max_(logits_TU.amax(dim=-1), group).unsqueeze(-1)
            target_T = logits_TU.gather(1, index_T.unsqueeze(-1)).squeeze(-1) * here_T
            p_TU = logits_TU.exp_()
            sum_T, target_T = sum_(torch.stack((p_TU.sum(dim=-1), target_T)), group)
            counted_T = labels >= 0
            loss += ((sum_T.log() - target_T) * counted_T).sum()
            p_TU /= sum_T.unsqueeze(-1)
            p_TU.scatter_add_(1, index_T.unsqueeze(-1), -here_T.to(p_TU.dtype).unsqueeze(-1))
            d_logits = p_TU.mul_(counted_T.unsqueeze(-1)).to(hidden_TD.dtype)
            torch.mm(d_logits, head, out=d_hidden[lo : lo + CHUNK])
            d_head += torch.mm(d_logits.t(), rows)
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
