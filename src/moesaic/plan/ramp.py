"""The batch ramp: what each of its steps costs in bubble, and what it saves to grow data parallelism with the batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moesaic.errors import PlanError
from moesaic.plan.routing import tokens_per_expert
from moesaic.plan.schedule import Engine, advice, schedulable, step_bubble, whole_batches
from moesaic.plan.sheet import Value

if TYPE_CHECKING:
    from moesaic.recipe import Layout, Model
    from moesaic.recipe.stage import Stage


@dataclass(frozen=True)
class Run:
    """One ramp step on some number of replicas."""

    dp: int
    micro_batches: float  # of a replica
    runs: bool  # whole, and the schedule takes it
    bubble: float
    mfu: float
    gpu_hours: float
    days: float


@dataclass(frozen=True)
class RampStep:
    """One step of the ramp as the layout runs it, and on as many replicas as keep the bubble under the limit."""

    after_tokens: int
    tokens: int  # trained at this batch
    batch_tokens: int
    batch_sequences: int
    batch_tokens_per_expert: float
    given: Run
    advised: Run | None  # None: no number of replicas keeps the limit
    fewest_bubble: Run | None  # of all that run, the one with the smallest bubble

    @property
    def saved_gpu_hours(self) -> float:
        """GPU-hours that the advice saves, if the devices left over do something else."""
        return self.given.gpu_hours - self.advised.gpu_hours if self.advised else 0.0


@dataclass(frozen=True)
class Ramp:
    """All steps of a stage's ramp that its tokens reach."""

    stage: str
    limit: float
    engine: Engine
    steps: tuple[RampStep, ...]

    @property
    def days(self) -> float:
        """Days of the stage on the layout as it is."""
        return sum(step.given.days for step in self.steps)

    @property
    def days_advised(self) -> float:
        """Days when every step with an advice follows it."""
        return sum((step.advised or step.given).days for step in self.steps)

    @property
    def saved_gpu_hours(self) -> float:
        """GPU-hours that the advice saves over the stage."""
        return sum(step.saved_gpu_hours for step in self.steps)


def plan_ramp(
    stage: Stage,
    layout: Layout,
    model: Model,
    *,
    mfu: float,
    flops_per_token: float,
    peak_flops: float,
    v: int = 1,
    limit: float = 0.1,
    replicas: Sequence[int] | None = None,
    engine: Engine = "torch",
    goodput: float = 1.0,
) -> Ramp:
    """Price the ramp of `stage` on `layout` with `v` chunks a rank.

    `mfu` holds at the last step that is reached; at another step it is mfu x (1 - bubble) / (1 - last bubble), all else
    being equal. `flops_per_token` (forward and backward, as `mfu` counts them) and `peak_flops` of one device give the
    GPU-hours; they grow as `goodput`, the share of time that is work kept, sinks. `replicas` may be used
    instead of `layout.dp` (its divisors, unless given). Raises PlanError.
    """
    if not 0 < mfu <= 1:
        raise PlanError(f"mfu {mfu}: give a share of the peak, above 0 and at most 1")
    if not 0 < limit < 1:
        raise PlanError(f"limit {limit}: give a bubble between 0 and 1, for example 0.1")
    if min(flops_per_token, peak_flops) <= 0:
        raise PlanError("flops_per_token and peak_flops must be positive")
    choices = sorted(set(replicas or _divisors(layout.dp)), reverse=True)
    if choices[-1] < 1:
        raise PlanError(f"replicas {choices[-1]}: at least 1")
    reached = [step for step in stage.batch if step.after_tokens < stage.tokens]
    chunks = 1 if layout.schedule == "1f1b" else v

    def bubble(sequences: int, dp: int) -> float:
        return step_bubble(layout.schedule, layout.pp, sequences / (dp * stage.micro_batch), chunks)

    last = bubble(reached[-1].tokens // stage.seq_len, layout.dp)
    steps = []
    ends = [step.after_tokens for step in reached[1:]] + [stage.tokens]
    for step, end in zip(reached, ends, strict=True):
        tokens, sequences = end - step.after_tokens, step.tokens // stage.seq_len

        def run(dp: int, tokens: int = tokens, sequences: int = sequences) -> Run:
            m, idle = sequences / (dp * stage.micro_batch), bubble(sequences, dp)
            rate = mfu * (1 - idle) / (1 - last)
            hours = tokens * flops_per_token / (peak_flops * rate * goodput) / 3600
            days = hours / (layout.world // layout.dp * dp) / 24
            return Run(dp, m, schedulable(m, layout.pp, chunks, engine), idle, rate, hours, days)

        possible = [r for r in map(run, choices) if r.runs]
        steps.append(
            RampStep(
                after_tokens=step.after_tokens,
                tokens=tokens,
                batch_tokens=step.tokens,
                batch_sequences=sequences,
                batch_tokens_per_expert=tokens_per_expert(step.tokens, model.top_k, model.n_experts),
                given=run(layout.dp),
                advised=next((r for r in possible if r.bubble <= limit), None),
                fewest_bubble=min(possible, key=lambda r: r.bubble, default=None),
            )
        )
    return Ramp(stage.name, limit, engine, tuple(steps))


def ramp_rows(ramp: Ramp) -> list[dict[str, Value]]:
    """Rows for a sheet's table, one a step."""
    rows: list[dict[str, Value]] = []
    for step in ramp.steps:
        given, advised = step.given, step.advised
        rows.append(
            {
                "after_tokens": step.after_tokens,
                "batch_tokens": step.batch_tokens,
                "batch_sequences": step.batch_sequences,
                "batch_tokens_per_expert": step.batch_tokens_per_expert,
                "replicas": given.dp,
                "micro_batches": given.micro_batches,
                "bubble_share": given.bubble,
                "mfu_share": given.mfu,
                "days": given.days,
                "days_share": given.days / ramp.days,
                "advised_replicas": advised.dp if advised else None,
                "advised_micro_batches": advised.micro_batches if advised else None,
                "advised_bubble_share": advised.bubble if advised else None,
                "advised_days": advised.days if advised else None,
                "saved_device_hours": step.saved_gpu_hours,
            }
        )
    return rows


def ramp_notes(ramp: Ramp, stage: Stage, layout: Layout, v: int = 1) -> list[str]:
    """The advice in sentences: steps that do not run, how to grow data parallelism, and where no count helps."""
    chunks = 1 if layout.schedule == "1f1b" else v
    notes = []
    for step in ramp.steps:
        reason = None if step.given.runs else advice(step.given.micro_batches, layout.pp, chunks)
        if reason:
            near = whole_batches(
                step.batch_tokens, stage.seq_len, step.given.dp, stage.micro_batch, layout.pp, chunks, ramp.engine
            )
            batches = " or ".join(_millions(tokens) for tokens in near)
            notes.append(f"a batch of {_batch(step)} on dp = {step.given.dp}: {reason}; that is {batches} tokens")
    if any(step.advised and step.advised.dp != step.given.dp for step in ramp.steps):
        runs = [(step, step.advised or step.given) for step in ramp.steps]
        path = " -> ".join(f"dp {run.dp} x {run.micro_batches:g} ({_batch(step)})" for step, run in runs)
        notes.append(
            f"grow data parallelism with the batch: {path}. With bubbles of at most {ramp.limit:.0%} this saves "
            f"{ramp.saved_gpu_hours:,.0f} GPU-hours if the devices left over work elsewhere; the stage takes "
            f"{ramp.days_advised:.1f} days instead of {ramp.days:.1f}. Each change of dp reshards a checkpoint."
        )
    for step in ramp.steps:
        if step.advised is None and (best := step.fewest_bubble):
            notes.append(
                f"no number of replicas keeps the bubble of a batch of {_batch(step)} under {ramp.limit:.0%}: the "
                f"smallest is {best.bubble:.1%} on dp = {best.dp}; use more chunks a rank or a larger batch"
            )
    return notes


def _batch(step: RampStep) -> str:
    return f"{_millions(step.batch_tokens)} tokens"


def _millions(tokens: float) -> str:
    return f"{tokens / 1e6:.1f} M" if tokens >= 1e5 else f"{tokens:,.0f}"


def _divisors(n: int) -> Iterable[int]:
    return {d for k in range(1, math.isqrt(n) + 1) if n % k == 0 for d in (k, n // k)}
