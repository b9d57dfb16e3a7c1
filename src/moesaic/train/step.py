"""One optimizer step: micro-batches forward and backward, one clip, one update.

Legend: L layers with a router, E experts.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from moesaic.data import IGNORE, Batch
from moesaic.model import Transformer, balance_loss, expert_load, next_token_loss, z_loss
from moesaic.recipe import Stage
from moesaic.train.optimizer import gradient_norm, scale_gradients, set_learning_rate
from moesaic.train.spikes import SpikeGuard


@dataclass(frozen=True)
class StepResult:
    """What one step did. Losses are means over the global batch, in nats where they are entropies."""

    loss: float
    balance_loss: float
    z_loss: float
    grad_norm: float
    skipped: bool
    load: list[list[float]]  # [layers with a router][experts], share of assignments
    seconds: float


class TrainStep:
    """Applies batches of one stage to a model. Every loss term is a sum over the global batch divided by a count

    of the global batch, so neither the micro-batch size nor the number of ranks changes its value.
    """

    def __init__(
        self,
        model: Transformer,
        stage: Stage,
        optimizer: torch.optim.Optimizer,
        teacher: Transformer | None = None,
    ) -> None:
        self.model, self.stage, self.optimizer, self.teacher = model, stage, optimizer, teacher
        self.spikes = SpikeGuard(stage.optimizer.spike_factor)
        config = model.config
        self.sparse = bool(config.sparse_layers)
        shape = (len(config.sparse_layers), config.n_experts)
        self.previous_load_LE = torch.full(shape, 1.0 / config.n_experts, device=model.embedding.device)
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def __call__(self, batch: Batch, lr: float) -> StepResult:
        """Train on one global batch. A step whose gradient is a spike or not finite changes no weight."""
        began = time.perf_counter()
        labels = int((batch.labels != IGNORE).sum())
        sequences = batch.tokens.shape[0]
        totals = torch.zeros(3, device=batch.tokens.device)  # next-token, balance, z
        counts_LE = torch.zeros_like(self.previous_load_LE)
        for micro in micro_batches(batch, self.stage.micro_batch):
            counts_LE += self.accumulate(micro, labels, sequences, totals)
        norm, admitted = self.update(lr)
        self.previous_load_LE = counts_LE / counts_LE.sum(dim=1, keepdim=True).clamp(min=1)
        loss, balance, z = totals.tolist()
        load = self.previous_load_LE.tolist() if self.sparse else []
        return StepResult(loss, balance, z, norm, not admitted, load, time.perf_counter() - began)

    def accumulate(self, micro: Batch, labels: int, sequences: int, totals: Tensor) -> Tensor:
        """Add the gradients of one micro-batch and its losses to `totals`; return assignments `[layers, experts]`."""
        model, config = self.model, self.model.config
        hidden_BSD, stats = model.hidden(micro.tokens, micro.positions, micro.documents, collect_stats=self.sparse)
        hidden_TD, labels_T = hidden_BSD.flatten(0, 1), micro.labels.flatten()
        if self.teacher is None:
            loss = next_token_loss(hidden_TD, model.head_weight, labels_T, model.kernels) / max(labels, 1)
        else:
            loss = self._distilled_loss(micro, hidden_TD, labels_T) / max(labels, 1)
        objective = loss
        balance = z = torch.zeros_like(loss)
        if stats:
            previous = config.balance_scope == "previous_batch"
            loads = [self.previous_load_LE[i] if previous else None for i in range(len(stats))]
            balance = sum_tensors(balance_loss(s, config.top_k, load) for s, load in zip(stats, loads, strict=True)) / (
                sequences * len(stats)
            )
            z = sum_tensors(z_loss(s) for s in stats) / (sequences * len(stats))
            # Reported as means over layers; weighted as sums, so that each layer feels the same pull at any depth.
            objective = loss + len(stats) * (config.balance_weight * balance + config.z_weight * z)
        objective.backward()
        totals += torch.stack([loss.detach(), balance.detach(), z.detach()])
        return expert_load(stats) if stats else torch.zeros_like(self.previous_load_LE)

    def update(self, lr: float) -> tuple[float, bool]:
        """Clip, update and drop the gradients; returns their norm and whether the step was taken."""
        norm = gradient_norm(self.parameters)
        admitted = self.spikes.admit(norm)
        if admitted:
            if norm > self.stage.optimizer.clip_norm:
                scale_gradients(self.parameters, self.stage.optimizer.clip_norm / norm)
            set_learning_rate(self.optimizer, lr)
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm, admitted

    def _distilled_loss(self, micro: Batch, hidden_TD: Tensor, labels_T: Tensor) -> Tensor:
        """(1 - share) x cross entropy + share x KL(teacher || model), summed over labels (Hinton et al. 2015)."""
        assert self.teacher is not None
        counted = labels_T != IGNORE
        with torch.no_grad():
            taught = self.teacher(micro.tokens, micro.positions, micro.documents).flatten(0, 1)[counted]
            log_teacher = F.log_softmax(taught.float(), dim=-1)
        logits = F.linear(hidden_TD[counted], self.model.head_weight.to(hidden_TD.dtype)).float()
        log_model = F.log_softmax(logits, dim=-1)
        divergence = F.kl_div(log_model, log_teacher, reduction="sum", log_target=True)
        share = self.stage.teacher_share
        return (1 - share) * F.nll_loss(log_model, labels_T[counted], reduction="sum") + share * divergence

    def state_dict(self) -> dict[str, object]:
        """What a resumed run needs besides model and optimizer: plain values."""
        return {"spikes": self.spikes.state_dict(), "previous_load": self.previous_load_LE.tolist()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from `state_dict`."""
        self.spikes.load_state_dict(state["spikes"])  # type: ignore[arg-type]
        self.previous_load_LE = torch.tensor(state["previous_load"], device=self.previous_load_LE.device)


def micro_batches(batch: Batch, size: int) -> Iterator[Batch]:
    """Cut a batch into pieces of at most `size` sequences."""
    for lo in range(0, batch.tokens.shape[0], size):
        rows = slice(lo, lo + size)
        yield Batch(batch.tokens[rows], batch.labels[rows], batch.documents[rows], batch.positions[rows])


def sum_tensors(terms: Iterator[Tensor]) -> Tensor:
    """Sum of scalars that starts from the first, so that it keeps its device."""
    return torch.stack(list(terms)).sum()
