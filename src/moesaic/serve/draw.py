"""Rows of probabilities: the likeliest token, a token drawn, and which tokens stay in the running.

What comes out for a row depends on that row alone, bit for bit, whatever else is in the batch.

Legend: R rows, V vocabulary, N blocks of it, B columns of a block, C candidates.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

BLOCK = 256  # columns that are summed up first: a running sum over a whole vocabulary costs more than its softmax
CANDIDATES = (256, 4096)  # likeliest tokens that are looked at before all of them are sorted


def likeliest(x_RV: Tensor) -> Tensor:
    """`[R]`: where each row is largest, the first place if there are several."""
    if x_RV.device.type == "cpu":
        return torch.from_numpy(x_RV.numpy().argmax(axis=-1))  # torch's takes ten times as long there
    return x_RV.argmax(-1)


def draw(weight_RV: Tensor, uniform: Sequence[float]) -> Tensor:
    """`[R]`: a token of each row, with probability in proportion to its weight, by inverting the running sum.

    `weight_RV`: 0 or more, in fp32, some of them above 0. `uniform`: numbers in [0, 1), one for each row. A token of
    weight 0 is never drawn.
    """
    last = weight_RV.shape[1] - 1
    sum_RN = _per_block(weight_RV, lambda x: x.sum(-1)).double().cumsum(-1)
    at_R1 = torch.tensor(uniform, dtype=torch.float64, device=weight_RV.device)[:, None] * sum_RN[:, -1:]
    block_R1, inside_R1 = _invert(sum_RN, at_R1)
    columns_RB = _columns(block_R1[:, 0])
    weight_RB = weight_RV.gather(1, columns_RB.clamp_max(last)).double().masked_fill_(columns_RB > last, 0)
    sum_RB = weight_RB.cumsum(-1)
    column_R1, _ = _invert(sum_RB, inside_R1 * sum_RB[:, -1:])
    return (block_R1 * BLOCK + column_R1)[:, 0]


def keep_likely(p_RV: Tensor, top_k: Sequence[int], top_p: Sequence[float], min_p: Sequence[float]) -> Tensor:
    """Probabilities with unlikely tokens at 0 and the rest summing to 1; `SamplingSettings` says which go.

    All three rules look at the same probabilities, and of equally likely tokens the lower number goes first. A row is
    sorted only as far as its cut is found, wholly if need be: the result is exact.
    """
    device, vocab = p_RV.device, p_RV.shape[1]
    top_p = [p if p < 1 else torch.inf for p in top_p]  # the running sum may be at 1 before its end, by rounding
    top_k_R1 = torch.tensor([k or vocab for k in top_k], device=device)[:, None]
    top_p_R1, min_p_R1 = (torch.tensor(x, dtype=p_RV.dtype, device=device)[:, None] for x in (top_p, min_p))
    kept_RV = torch.zeros_like(p_RV)
    left_R = torch.arange(len(p_RV), device=device)
    for width in (*(c for c in CANDIDATES if c < vocab), vocab):
        p_RC, token_RC = _most(p_RV if len(left_R) == len(p_RV) else p_RV[left_R], width)
        keep_RC = p_RC >= min_p_R1[left_R] * p_RC[:, :1]
        keep_RC &= p_RC.cumsum(-1) - p_RC < top_p_R1[left_R]  # what comes before does not reach top_p yet
        keep_RC &= torch.arange(width, device=device) < top_k_R1[left_R]
        keep_RC[:, 0] = True
        # An equal of the last candidate may have been left outside with a lower number: then look at more.
        least_kept_R = p_RC.masked_fill(~keep_RC, torch.inf).amin(-1)
        settled_R = (least_kept_R > p_RC[:, -1]) | (width == vocab)
        p_RC = p_RC * keep_RC
        p_RC /= p_RC.sum(-1, keepdim=True)
        if settled_R.all() and len(left_R) == len(p_RV):
            return kept_RV.scatter_(1, token_RC, p_RC)
        settled_RV = p_RV.new_zeros(len(left_R), vocab).scatter_(1, token_RC, p_RC)[settled_R]
        kept_RV.index_copy_(0, left_R[settled_R], settled_RV)
        left_R = left_R[~settled_R]
        if not len(left_R):
            break
    return kept_RV


def _most(p_RV: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The `width` largest of each row and their columns, in falling order, equal ones by column."""
    if width == p_RV.shape[1]:
        return p_RV.sort(dim=-1, descending=True, stable=True)
    column_RC = p_RV.topk(width, dim=-1, sorted=False).indices.sort(dim=-1).values
    p_RC, order_RC = p_RV.gather(1, column_RC).sort(dim=-1, descending=True, stable=True)
    return p_RC, column_RC.gather(1, order_RC)


def _invert(sum_RN: Tensor, at_R1: Tensor) -> tuple[Tensor, Tensor]:
    """Where each running sum first passes `at`, and how far between its neighbours that is, 0 to 1."""
    total_R1 = sum_RN[:, -1:]
    at_R1 = torch.minimum(at_R1, torch.nextafter(total_R1, torch.zeros_like(total_R1)))  # rounding may have reached it
    index_R1 = torch.searchsorted(sum_RN, at_R1, right=True)
    before_R1 = sum_RN.gather(1, (index_R1 - 1).clamp_min(0)).masked_fill_(index_R1 == 0, 0)
    return index_R1, (at_R1 - before_R1) / (sum_RN.gather(1, index_R1) - before_R1)


def _per_block(x_RV: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """`[R, N]`: each block of columns reduced; the last may be shorter."""
    whole = x_RV.shape[1] // BLOCK * BLOCK
    parts = [reduce(x_RV[:, :whole].unflatten(1, (whole // BLOCK, BLOCK)))] if whole else []
    if whole < x_RV.shape[1]:
        parts.append(reduce(x_RV[:, whole:])[:, None])
    return torch.cat(parts, dim=1)


def _columns(block_R: Tensor) -> Tensor:
    """`[R, B]`: the columns of one block each."""
    return block_R[:, None] * BLOCK + torch.arange(BLOCK, device=block_R.device)
