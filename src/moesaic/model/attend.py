"""Scaled dot-product attention over packed documents: torch's operator, and a faster one for training on a CPU.

Legend: B sequences, S positions, K key/value heads, G query heads per key/value head, H = K*G, C head width,
N = B*K independent problems, R = S*G query rows of one problem.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moesaic.model.kernels import RowKernels

CHUNK = 128  # query positions at a time: their scores stay in cache
CHUNKED_LIMIT = 4096  # above it the kept probabilities (seq^2 / 2 a head) cost too much memory


@dataclass(frozen=True)
class Visibility:
    """Who sees whom in a batch of packed documents, each in one piece; made once and shared by all layers."""

    starts_BS: Tensor  # first key that each query sees; the last is the query's own
    first_key: tuple[int, ...]  # earliest key that any query of chunk i may see
    begin: int = 0  # position of the first query; keys begin at 0

    @classmethod
    def of(cls, tokens_BS: Tensor, documents_BS: Tensor | None, window: int | None = None) -> "Visibility":
        """Causal, within each document of the row; without documents the row is one document.

        With a window a token sees no more than that many, itself included.
        """
        seq = tokens_BS.shape[1]
        position_S = torch.arange(seq, device=tokens_BS.device)
        if documents_BS is None:
            starts_BS = torch.zeros_like(tokens_BS)
            if window is None:
                return cls(starts_BS, (0,) * -(-seq // CHUNK))
        else:
            starts_BS = cls._document_starts(documents_BS, position_S)
        if window is not None:
            starts_BS = torch.maximum(starts_BS, position_S - (window - 1))
        # Rounded down so that few distinct shapes reach the matrix kernels.
        first = starts_BS[:, ::CHUNK].amin(dim=0) // CHUNK * CHUNK
        return cls(starts_BS, tuple(first.tolist()))

    @staticmethod
    def _document_starts(documents_BS: Tensor, position_S: Tensor) -> Tensor:
        begins_BS = torch.ones_like(documents_BS, dtype=torch.bool)
        begins_BS[:, 1:] = documents_BS[:, 1:] != documents_BS[:, :-1]
        return torch.where(begins_BS, position_S, 0).cummax(dim=1).values

    def piece(self, begin: int, end: int) -> "Visibility":
        """The same for the queries at positions `begin` to `end` alone, over the keys 0 to `end`."""
        first = self.starts_BS[:, begin:end:CHUNK].amin(dim=0) // CHUNK * CHUNK
        return Visibility(self.starts_BS[:, :end], tuple(first.tolist()), begin)

    @cached_property
    def allowed(self) -> Tensor:
        """`[batch, queries, keys]`: True where the query may see the key."""
        key_S = torch.arange(self.starts_BS.shape[1], device=self.starts_BS.device)
        query_Q1 = key_S[self.begin :].unsqueeze(-1)
        return (key_S >= self.starts_BS[:, self.begin :].unsqueeze(-1)) & (key_S <= query_Q1)


def attend(q_BSHC: Tensor, k_BSKC: Tensor, v_BSKC: Tensor, sight: Visibility, kernels: RowKernels) -> Tensor:
    """softmax(q k^T / sqrt(C)) v over the keys each query may see; `[batch, seq, heads, width]` in and out."""
    if q_BSHC.device.type == "cpu" and q_BSHC.shape[1] <= CHUNKED_LIMIT:
        out: Tensor = _ChunkedAttention.apply(q_BSHC, k_BSKC, v_BSKC, sight, kernels)  # type: ignore[no-untyped-call]
        return out
    return attend_reference(q_BSHC, k_BSKC, v_BSKC, sight)


def attend_reference(q_BSHC: Tensor, k_BSKC: Tensor, v_BSKC: Tensor, sight: Visibility) -> Tensor:
    """The same through torch's operator."""
    q, k, v = (x.transpose(1, 2) for x in (q_BSHC, k_BSKC, v_BSKC))
    mask = sight.allowed.unsqueeze(1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)


def attend_cached(q_BSHC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, window: int | None = None) -> Tensor:
    """Attend from the last `seq` positions to the `T` cached ones, causally and within the window.

    Returns `[batch, seq, heads, width]`.
    """
    seq = q_BSHC.shape[1]
    if window is not None:  # what no query sees need not be read
        k_BKTC, v_BKTC = (x[:, :, -(window + seq - 1) :] for x in (k_BKTC, v_BKTC))
    total = k_BKTC.shape[2]
    mask = None
    if seq > 1:
        mask = torch.ones(seq, total, dtype=torch.bool, device=q_BSHC.device).tril(diagonal=total - seq)
        if window is not None:
            mask = mask.triu(diagonal=total - seq - window + 1)
    q = q_BSHC.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k_BKTC, v_BKTC, attn_mask=mask, enable_gqa=True).transpose(1, 2)


class _ChunkedAttention(torch.autograd.Function):
    """Query heads that share a key/value head become rows of one product, so multi-query attention is two plain

    matrix products a chunk, and its key and value gradients are summed over heads inside the product. Keys after
    the chunk and before its earliest document are never touched. Over twice as fast as torch's (docs/lab-log.md).
    """

    @staticmethod
    def forward(
        ctx: Any, q_BSHC: Tensor, k_BSKC: Tensor, v_BSKC: Tensor, sight: Visibility, kernels: RowKernels
    ) -> Tensor:
        _, seq, heads, width = q_BSHC.shape
        kv_heads = k_BSKC.shape[2]
        group = heads // kv_heads
        q_NRC = _to_rows(q_BSHC * width**-0.5, kv_heads)
        k_NSC, v_NSC = _to_rows(k_BSKC, kv_heads), _to_rows(v_BSKC, kv_heads)
        out_NRC = torch.empty_like(q_NRC)
        kept, chunks = [], _chunks(sight.begin, seq, sight.first_key)
        for lo, hi, first in chunks:
            rows = slice((lo - sight.begin) * group, (hi - sight.begin) * group)
            scores = torch.bmm(q_NRC[:, rows], k_NSC[:, first:hi].transpose(1, 2))
            p = kernels.visible_softmax(scores, sight.starts_BS, lo, hi, first)
            out_NRC[:, rows] = torch.bmm(p, v_NSC[:, first:hi])
            kept.append(p)
        ctx.save_for_backward(q_NRC, k_NSC, v_NSC, out_NRC, *kept)
        ctx.kv_heads, ctx.group, ctx.begin, ctx.chunks, ctx.kernels = kv_heads, group, sight.begin, chunks, kernels
        return _from_rows(out_NRC, kv_heads, group)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        q_NRC, k_NSC, v_NSC, out_NRC, *kept = ctx.saved_tensors
        group, width = ctx.group, k_NSC.shape[2]
        dout_NRC = _to_rows(grad_outputs[0], ctx.kv_heads)
        delta_NR = (dout_NRC * out_NRC).sum(dim=-1, dtype=torch.float32)
        dq_NRC = torch.empty_like(q_NRC)
        dk_NSC, dv_NSC = (torch.zeros_like(k_NSC, dtype=torch.float32) for _ in range(2))
        for p, (lo, hi, first) in zip(kept, ctx.chunks, strict=True):
            rows = slice((lo - ctx.begin) * group, (hi - ctx.begin) * group)
            dout = dout_NRC[:, rows]
            dp = torch.bmm(dout, v_NSC[:, first:hi].transpose(1, 2))
            dscores = ctx.kernels.softmax_backward(dp, p, delta_NR[:, rows])
            dq_NRC[:, rows] = torch.bmm(dscores, k_NSC[:, first:hi])
            dk_NSC[:, first:hi] += torch.bmm(dscores.transpose(1, 2), q_NRC[:, rows])
            dv_NSC[:, first:hi] += torch.bmm(p.transpose(1, 2), dout)
        dq = _from_rows(dq_NRC.mul_(width**-0.5), ctx.kv_heads, group)
        dk, dv = (_from_rows(g.to(k_NSC.dtype), ctx.kv_heads, 1) for g in (dk_NSC, dv_NSC))
        return dq, dk, dv, None, None


def _chunks(begin: int, queries: int, first_key: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Positions lo to hi of each chunk of queries, and the first key that it looks at."""
    end = begin + queries
    return [(lo, min(end, lo + CHUNK), first) for lo, first in zip(range(begin, end, CHUNK), first_key, strict=True)]


def _to_rows(x_BSHC: Tensor, kv_heads: int) -> Tensor:
    """`[batch, seq, kv_heads * group, width] -> [batch * kv_heads, seq * group, width]`; no copy for one kv head."""
    batch, seq, heads, width = x_BSHC.shape
    split = x_BSHC.reshape(batch, seq, kv_heads, heads // kv_heads, width).transpose(1, 2)
    return split.reshape(batch * kv_heads, -1, width)


def _from_rows(x_NRC: Tensor, kv_heads: int, group: int) -> Tensor:
    """Inverse of `_to_rows`."""
    split = x_NRC.view(-1, kv_heads, x_NRC.shape[1] // group, group, x_NRC.shape[2])
    return split.transpose(1, 2).flatten(2, 3)
