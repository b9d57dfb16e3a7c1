"""Measuring a run: rates of each step, and what a run is expected to cost before its first step."""

import time
from datetime import UTC, datetime
from typing import Any

from moesaic.data import Batch, DataFolder, Loader
from moesaic.parallel.engine import Engine
from moesaic.plan.forecast import forecast
from moesaic.plan.routing import tokens_per_expert
from moesaic.recipe import Recipe, Stage
from moesaic.train.machine import Machine
from moesaic.train.optimizer import build_optimizer
from moesaic.train.start import load_teacher
from moesaic.train.step import StepResult, TrainStep


class StepMeter:
    """Turns a step into its line of metrics.jsonl. FLOPs: 6 x active parameters x tokens, no attention scores."""

    def __init__(self, recipe: Recipe, stage: Stage, peak: float) -> None:
        self.model, self.stage, self.peak = recipe.model, stage, peak
        self._began = self._loaded = 0.0

    def start(self) -> None:
        """A step begins."""
        self._began = time.perf_counter()

    def loaded(self) -> None:
        """Its data is there."""
        self._loaded = time.perf_counter()

    def line(self, batch: Batch, result: StepResult, *, step: int, tokens: int, lr: float) -> dict[str, Any]:
        """The line of this step; `tokens` is the run's total so far."""
        seconds = time.perf_counter() - self._began
        here = batch.input_tokens
        flops = 6 * self.model.active_parameters * here / seconds
        return {
            "step": step,
            "stage": self.stage.name,
            "tokens": tokens,
            "batch_tokens": here,
            "batch_sequences": batch.sequences,
            "tokens_per_expert": tokens_per_expert(here, self.model.top_k, self.model.n_experts),
            "loss": result.loss,
            "balance_loss": result.balance_loss,
            "z_loss": result.z_loss,
            "grad_norm": result.grad_norm,
            "lr": lr,
            "skipped": result.skipped,
            "load": result.load,
            "seconds": seconds,
            "data_seconds": self._loaded - self._began,
            "tokens_per_second": here / seconds,
            "model_flops_per_second": flops,
            "peak_share": flops / self.peak,
            "time_iso": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }


def expected(recipe: Recipe, data: DataFolder, machine: Machine, engine: Engine) -> dict[str, Any]:
    """The forecast of a run: every batch of every ramp is timed on a few micro-batches, and no weight changes."""
    rates: dict[tuple[str, int], float] = {}
    before = engine.compute_dtype
    for stage in recipe.stages:
        engine.set_compute_dtype(machine.compute_dtype(stage.precision))
        engine.freeze(stage.trainable)
        teacher = None if stage.teacher is None else load_teacher(engine, stage)
        optimizer = build_optimizer(engine.named_parameters(), stage.optimizer)
        step = TrainStep(engine, stage, optimizer, teacher)
        loader = Loader(data, stage, recipe, recipe.seed)
        for batch in stage.batch:
            rates[stage.name, batch.tokens] = _rate(step, loader, machine, batch.tokens // stage.seq_len)
    engine.set_compute_dtype(before)
    return forecast(recipe, rates, data.epoch_tokens) | {"machine": machine.name}


def _rate(step: TrainStep, loader: Loader, machine: Machine, sequences: int) -> float:
    """Tokens per second at a batch of so many sequences: the best of three, after one to warm up.

    One micro-batch stands for all, or as many as fill a pipeline, and a learning rate of 0 makes an update that takes
    its time and changes nothing.
    """
    layout, place = step.engine.layout, step.engine.meshes.place
    some = min(sequences, step.stage.micro_batch * layout.dp * (1 if layout.pp == 1 else 4 * layout.pp))
    share = (place.dp, layout.dp)
    batch = loader.next_batch(some, share)
    if batch is None:  # the sources are small: begin again
        loader.load_state_dict(loader.state_dict() | {"window": 0, "offset": 0})
        batch = loader.next_batch(some, share)
    assert batch is not None  # build_data refuses empty sources
    batch = batch.to(machine.device)
    rows, times, updates = batch.sequences, [], []
    for _ in range(4):
        began = time.perf_counter()
        step.accumulate(batch)
        machine.wait()
        forward_backward = time.perf_counter()
        step.update(0.0)
        machine.wait()
        times.append(forward_backward - began)
        updates.append(time.perf_counter() - forward_backward)
    return batch.input_tokens * sequences / rows / (min(times[1:]) * sequences / rows + min(updates[1:]))
