"""One optimizer step: micro-batches forward and backward, one clip, one update.

Legend: L layers with a router, E experts.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from moesaic.data import IGNORE, Batch
from moesaic.model import Transformer
from moesaic.parallel.engine import Engine
from moesaic.parallel.part import Loss, StepScale
from moesaic.recipe import Stage
from moesaic.train.observer import Observer
from moesaic.train.optimizer import set_learning_rate
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
        engine: Engine,
        stage: Stage,
        optimizer: torch.optim.Optimizer,
        teacher: Transformer | None = None,
        observer: Observer | None = None,
        before_update: Callable[[], None] = lambda: None,
    ) -> None:
        """`before_update` is called before weights change: a save may still be copying them."""
        self.before_update = before_update
        self.engine, self.stage, self.optimizer, self.teacher = engine, stage, optimizer, teacher
        self.observer = observer or Observer()
        self.spikes = SpikeGuard(stage.optimizer.spike_factor)
        config = engine.config
        self.sparse = bool(config.sparse_layers)
        shape = (len(config.sparse_layers), config.n_experts)
        self.previous_load_LE = torch.full(shape, 1.0 / config.n_experts, device=engine.world.device)

    def __call__(self, batch: Batch, lr: float, step: int = 0) -> StepResult:
        """Train on one global batch, of which `batch` holds this rank's sequences.

        A step whose gradient is a spike or not finite changes no weight. `step`: its number, for the observer.
        """
        began = time.perf_counter()
        loss, balance, z, counts_LE = self.accumulate(batch)
        self.observer.gradients_ready(step)
        norm, admitted = self.update(lr)
        self.previous_load_LE = counts_LE / counts_LE.sum(dim=1, keepdim=True).clamp(min=1)
        load = self.previous_load_LE.tolist() if self.sparse else []
        return StepResult(loss, balance, z, norm, not admitted, load, time.perf_counter() - began)

    def accumulate(self, batch: Batch) -> tuple[float, float, float, Tensor]:
        """Add up the gradients of a batch; next-token, balance and z loss, and assignments `[layers, experts]`."""
        labels = self.engine.count(int((batch.labels != IGNORE).sum()))
        scale = StepScale(labels, batch.sequences, self.previous_load_LE)
        loss_of = None if self.teacher is None else self._distillation
        tally = self.engine.accumulate(batch, self.stage.micro_batch, scale, loss_of)
        return *torch.stack((tally.loss, tally.balance, tally.z)).tolist(), tally.counts_LE

    def update(self, lr: float) -> tuple[float, bool]:
        """Reduce, clip, update and drop the gradients; returns their norm and whether the step was taken."""
        gradients = self.engine.gradients
        gradients.finish()
        norm = gradients.norm()
        admitted = self.spikes.admit(norm)
        if admitted:
            if norm > self.stage.optimizer.clip_norm:
                gradients.scale(self.stage.optimizer.clip_norm / norm)
            set_learning_rate(self.optimizer, lr)
            self.before_update()
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm, admitted

    def _distillation(self, micro: Batch) -> Loss:
        """(1 - share) x cross entropy + share x KL(teacher || model), summed over labels (Hinton et al. 2015)."""

        def loss(hidden_TD: Tensor, labels_T: Tensor) -> Tensor:
            assert self.teacher is not None
            counted = labels_T != IGNORE
            with torch.no_grad():
                taught = self.teacher(micro.tokens, micro.positions, micro.documents).flatten(0, 1)[counted]
                log_teacher = F.log_softmax(taught.float(), dim=-1)
            (part,) = self.engine.parts
            logits = F.linear(hidden_TD[counted], part.head_weight.to(hidden_TD.dtype)).float()
            log_model = F.log_softmax(logits, dim=-1)
            divergence = F.kl_div(log_model, log_teacher, reduction="sum", log_target=True)
            share = self.stage.teacher_share
            return (1 - share) * F.nll_loss(log_model, labels_T[counted], reduction="sum") + share * divergence

        return loss

    def state_dict(self) -> dict[str, object]:
        """What a resumed run needs besides model and optimizer: plain values."""
        return {"spikes": self.spikes.state_dict(), "previous_load": self.previous_load_LE.tolist()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from `state_dict`."""
        self.spikes.load_state_dict(state["spikes"])  # type: ignore[arg-type]
        self.previous_load_LE = torch.tensor(state["previous_load"], device=self.previous_load_LE.device)
