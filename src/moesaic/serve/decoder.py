"""What computes a step: the model's own modules over paged keys and values, in torch on any device.

The readable reference of the native decoder, and what runs where that is not built.

Legend: T rows (new positions of all requests), R wanted rows, P positions in all pages, H query heads, K key/value
heads, C head width, V vocabulary, E experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from moesaic.model import Transformer
from moesaic.model.attend import attend_cached
from moesaic.model.router import Router, Routing
from moesaic.serve.batch import StepBatch

INVARIANT_ROWS = 16  # a product of so many rows, or a multiple, computes each alike whatever the others are


class Decoder(Protocol):
    """A model with its pages."""

    name: str
    """In words: what computes."""

    def step(self, batch: StepBatch) -> tuple[Tensor, NDArray[np.int64]]:
        """Write the keys and values of all rows; logits `[wanted, vocab]` in fp32 and, of each sparse layer, the

        positions that each expert computed, `[layers, experts]`.
        """


class Pages:
    """Keys and values of one layer in blocks; the last block is nobody's and takes what padding writes."""

    def __init__(self, blocks: int, block_size: int, heads: int, width: int, dtype: torch.dtype) -> None:
        self.k_PKC = torch.zeros((blocks + 1) * block_size, heads, width, dtype=dtype)
        self.v_PKC = torch.zeros_like(self.k_PKC)


@dataclass(frozen=True)
class _Span:
    """One request's rows, and the slots of all its positions."""

    rows: slice
    slots_S: Tensor


class _PagedLayer:
    """One layer's pages during one step (`KeyValues`)."""

    def __init__(self, pages: Pages, spans: Sequence[_Span], slots_T: Tensor, chunk: int | None) -> None:
        self._pages, self._spans, self._slots_T, self._chunk = pages, spans, slots_T, chunk

    def attend(self, start: int, q_BSHC: Tensor, k_BSKC: Tensor, v_BSKC: Tensor, window: int | None) -> Tensor:
        """Request by request over its gathered pages. The batch is one row of all requests' positions."""
        self._pages.k_PKC[self._slots_T] = k_BSKC[0]
        self._pages.v_PKC[self._slots_T] = v_BSKC[0]
        out_BSHC = torch.zeros_like(q_BSHC)
        for span in self._spans:
            k, v = (p[span.slots_S].transpose(0, 1).unsqueeze(0) for p in (self._pages.k_PKC, self._pages.v_PKC))
            out_BSHC[:, span.rows] = self._over(q_BSHC[:, span.rows], k, v, window)
        return out_BSHC

    def _over(self, q_BSHC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, window: int | None) -> Tensor:
        if self._chunk is None:
            return attend_cached(q_BSHC, k_BKSC, v_BKSC, window)
        # Query by query, over its own keys alone: whatever else is in the step, its sums are the same.
        first = k_BKSC.shape[2] - q_BSHC.shape[1] + 1
        outs = [
            attend_cached(q_BSHC[:, i : i + 1], k_BKSC[:, :, : first + i], v_BKSC[:, :, : first + i], window)
            for i in range(q_BSHC.shape[1])
        ]
        return torch.cat(outs, dim=1)


class _PagedStep:
    """All layers' pages during one step (`KeyValueCache`)."""

    def __init__(self, layers: Sequence[_PagedLayer]) -> None:
        self.layers = layers

    def reserve(self, new: int) -> int:
        """Positions are given with the tokens."""
        return 0

    def advance(self, new: int) -> None:
        """Nothing to count."""


class TorchDecoder:
    """`Transformer` over pages."""

    def __init__(
        self, model: Transformer, blocks: int, block_size: int, batch_invariant: bool = False, why: str = "as asked"
    ) -> None:
        """`batch_invariant`: a row's numbers do not depend, to the bit, on what else is in the step. `why` torch."""
        config = model.config
        self.model, self.block_size, self.batch_invariant = model, block_size, batch_invariant
        self.device = model.embedding.device
        with self.device:
            self._pages = [
                Pages(blocks, block_size, config.n_kv_heads, config.head_dim, model.compute_dtype)
                for _ in range(config.n_layers)
            ]
        self._nobody = blocks * block_size
        self.name = f"torch on {self.device.type} ({why})" + (", batch-invariant" if batch_invariant else "")

    @torch.inference_mode()
    def step(self, batch: StepBatch) -> tuple[Tensor, NDArray[np.int64]]:
        """See `Decoder.step`."""
        spans, slots = [], []
        inside = torch.arange(self.block_size)
        for rows, blocks in zip(batch.rows, batch.blocks, strict=True):
            end = int(batch.positions_T[rows.stop - 1]) + 1
            table = torch.tensor(blocks, dtype=torch.int64)
            slots_S = (table.unsqueeze(1) * self.block_size + inside).flatten()[:end]
            slots.append(slots_S[end - len(rows) :])
            spans.append(_Span(slice(rows.start, rows.stop), slots_S.to(self.device)))
        count = len(batch.tokens_T)
        padding = -count % INVARIANT_ROWS if self.batch_invariant else 0
        slots_T = F.pad(torch.cat(slots), (0, padding), value=self._nobody).to(self.device)
        tokens, positions = (
            F.pad(torch.from_numpy(x).long(), (0, padding)).unsqueeze(0).to(self.device)
            for x in (batch.tokens_T, batch.positions_T)
        )
        chunk = 1 if self.batch_invariant else None
        cache = _PagedStep([_PagedLayer(pages, spans, slots_T, chunk) for pages in self._pages])
        with _ExpertCounts(self.model, count) as counts:
            hidden_BTD, _ = self.model.hidden(tokens, positions, cache=cache)
        wanted_R = torch.from_numpy(batch.wanted_R).long()
        rows_R = F.pad(wanted_R, (0, -len(wanted_R) % INVARIANT_ROWS if self.batch_invariant else 0)).to(self.device)
        logits_RV = F.linear(hidden_BTD[0, rows_R], self.model.head_weight.to(self.model.compute_dtype))
        return logits_RV[: len(wanted_R)].float(), counts.stacked()


class _ExpertCounts:
    """How many of the first `count` rows of a step each expert of each sparse layer computes."""

    def __init__(self, model: Transformer, count: int) -> None:
        self._routers = [m for m in model.modules() if isinstance(m, Router)]
        self._count, self._layers = count, list[Tensor]()

    def __enter__(self) -> "_ExpertCounts":
        def hook(router: Router, inputs: tuple[Tensor, ...], routing: Routing) -> None:
            experts = routing.experts_TK[: self._count].flatten()
            self._layers.append(torch.bincount(experts, minlength=router.weight.shape[0]))

        self._handles = [router.register_forward_hook(hook) for router in self._routers]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def stacked(self) -> NDArray[np.int64]:
        """`[sparse layers, experts]`."""
        if not self._layers:
            return np.zeros((0, 0), dtype=np.int64)
        return torch.stack(self._layers).cpu().numpy()
