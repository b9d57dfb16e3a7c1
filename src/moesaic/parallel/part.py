"""A piece of the model: some of its layers, at the front the embedding, at the end the norm, the head and the loss.

With one process the piece is the whole. Weights keep the names that they have in the whole model.

Legend: B sequences, S positions of a whole sequence, C positions on this context rank, L positions on this tensor
rank (the residual stream is cut over tensor ranks), D model width, E experts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moesaic.model import Transformer, balance_loss, next_token_loss, z_loss
from moesaic.model.attend import Visibility
from moesaic.model.block import Block
from moesaic.model.rotary import rotary_table
from moesaic.model.router import RouterStats
from moesaic.parallel.collectives import SEQUENCE, gather, scatter_sum, sum_
from moesaic.parallel.cut import SequenceCut
from moesaic.parallel.vocabulary import embed_shared, vocabulary_loss

# hidden states [rows, d], labels [rows] -> sum of losses over the labels
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Tally:
    """What the micro-batches of one step add up to on this rank: shares of sums over the global batch."""

    loss: Tensor
    balance: Tensor
    z: Tensor
    counts_LE: Tensor  # assignments; rows of other ranks' layers stay 0

    @classmethod
    def empty(cls, sparse_layers: int, n_experts: int, device: torch.device) -> "Tally":
        """Nothing yet."""
        zero = torch.zeros(3, device=device)
        return cls(zero[0], zero[1], zero[2], torch.zeros(sparse_layers, n_experts, device=device))


@dataclass
class StepScale:
    """Counts of the global batch, by which every sum is divided."""

    labels: int = 1
    sequences: int = 1
    previous_load_LE: Tensor = field(default_factory=lambda: torch.zeros(0))


class Part(nn.Module):
    """Layers `layers` of `model`; `first` and `last` say whether it holds the ends.

    Takes over the submodules of `model`, which is left empty-handed.
    """

    def __init__(self, model: Transformer, layers: range, first: bool, last: bool, cut: SequenceCut) -> None:
        super().__init__()
        self.config, self.first, self.last, self.cut = model.config, first, last, cut
        self.embedding = model.embedding if first else None
        if last and not first and model.config.tie_embeddings:
            self.embedding = nn.Parameter(torch.empty_like(model.embedding))  # a copy of its own, kept equal
        self.layers = nn.ModuleDict({str(n): model.layers[n] for n in layers})
        self.norm = model.norm if last else None
        self.head = model.head if last else None
        self.compute_dtype, self.kernels = model.compute_dtype, model.kernels
        self.loss: Loss | None = None  # in place of the next-token loss
        self.tally = Tally.empty(len(self.config.sparse_layers), self.config.n_experts, torch.device("cpu"))
        self.scale = StepScale()
        self.row_of = {n: i for i, n in enumerate(self.config.sparse_layers)}
        self._rows = torch.tensor([self.row_of[n] for n in layers if n in self.row_of], dtype=torch.int64, device="cpu")

    @property
    def blocks(self) -> list[Block]:
        """The layers, in order."""
        return list(self.layers.values())  # type: ignore[arg-type]

    @property
    def head_weight(self) -> Tensor:
        """The output head, or this part's copy of the embedding when tied; this rank's rows of it."""
        weight: Tensor = self.embedding if self.head is None else self.head  # type: ignore[assignment]
        return weight

    def forward(self, x: Tensor, positions_BS: Tensor, documents_BS: Tensor, labels_BS: Tensor) -> Tensor:
        """One micro-batch. `x`: tokens `[B, S]` at the front, else the residual stream `[B, L, D]`.

        Returns the residual stream or, at the end, this rank's share of the loss `[1]`. The shares of the router's
        losses are attached to what is returned: their gradients flow whenever its own do.
        """
        cut, dtype = self.cut, self.compute_dtype
        sight = cut.sight(Visibility.of(positions_BS, documents_BS, self.config.window), positions_BS.shape[1])
        # Dynamic scaling goes by the whole sequence: not by this rank's piece, nor by a micro-batch's documents.
        rotary = rotary_table(cut.context(positions_BS), self.config, dtype, length=positions_BS.shape[1])
        real_BL = cut.tensor(cut.context(documents_BS)) >= 0 if self.row_of else None
        x_BLD = self._embed(cut.context(x)) if self.first else x
        stats: dict[int, RouterStats] = {}
        for name, layer in self.layers.items():
            x_BLD, found = layer(x_BLD, rotary, sight, real_BL, dtype)
            if found is not None:
                stats[self.row_of[int(name)]] = found
        out = self._loss(x_BLD, cut.context(labels_BS)) if self.last else x_BLD
        return self._with_router_losses(out, stats) if stats else out

    def _embed(self, tokens_BC: Tensor) -> Tensor:
        if self.cut.tp is None:
            return F.embedding(tokens_BC, self.embedding)  # type: ignore[arg-type]
        return scatter_sum(embed_shared(tokens_BC, self.embedding, self.cut.tp), SEQUENCE, self.cut.tp)  # type: ignore[arg-type]

    def _loss(self, x_BLD: Tensor, labels_BC: Tensor) -> Tensor:
        hidden_BLD = self.norm(x_BLD, self.compute_dtype)  # type: ignore[misc]
        hidden_TD = gather(hidden_BLD, SEQUENCE, self.cut.tp).flatten(0, 1)
        labels_T = labels_BC.flatten()
        if self.loss is not None:
            loss = self.loss(hidden_TD, labels_T)
        elif self.cut.tp is None:
            loss = next_token_loss(hidden_TD, self.head_weight, labels_T, self.kernels)
        else:
            loss = vocabulary_loss(hidden_TD, self.head_weight, labels_T, self.cut.tp)
        loss = loss / max(self.scale.labels, 1)
        if self.cut.tp_rank == 0:  # every tensor rank knows the whole sum
            self.tally.loss = self.tally.loss + loss.detach()
        return loss.reshape(1)

    def _with_router_losses(self, out: Tensor, stats: dict[int, RouterStats]) -> Tensor:
        """Balance and z loss of this rank's tokens, with counts of the whole sequences that they are from."""
        config = self.config
        rows = sorted(stats)
        seen = torch.stack([torch.cat((stats[r].counts_BE, stats[r].tokens_B.unsqueeze(-1)), dim=-1) for r in rows])
        if self._rows.device != seen.device:  # once: a copy to the device waits for it
            self._rows = self._rows.to(seen.device)
        self.tally.counts_LE = self.tally.counts_LE.index_add(0, self._rows, seen[..., :-1].sum(dim=1))
        sum_(seen, self.cut.sequence)
        balances, zs = [], []
        for row, whole_BE1 in zip(rows, seen, strict=True):
            own = stats[row]
            whole = RouterStats(whole_BE1[:, :-1], own.probability_sum_BE, own.z_sum_B, whole_BE1[:, -1])
            load = self.scale.previous_load_LE[row] if config.balance_scope == "previous_batch" else None
            balances.append(balance_loss(whole, config.top_k, load))
            zs.append(z_loss(whole))
        balance, z = (torch.stack(terms).sum() / self.scale.sequences for terms in (balances, zs))
        layers = len(config.sparse_layers)
        # Reported as means over layers; weighted as sums, so that each layer feels the same pull at any depth.
        self.tally.balance = self.tally.balance + balance.detach() / layers
        self.tally.z = self.tally.z + z.detach() / layers
        attached: Tensor = _Attach.apply(out, config.balance_weight * balance + config.z_weight * z)  # type: ignore[no-untyped-call]
        return attached


class _Attach(torch.autograd.Function):
    """Let a term of the objective ride on `x`: whenever gradients reach `x`, the term gets its own, which is 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, term: Tensor) -> Tensor:
        return x.clone()  # not a view: zero-bubble schedules detach it in place

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        return grad_outputs[0], grad_outputs[0].new_ones((), dtype=torch.float32)
