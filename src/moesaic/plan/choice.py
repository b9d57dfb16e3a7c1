"""A layout that a search chose, with all that is told of it: batch, memory, step, utilisation, days, dollars."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moesaic.plan.cost import dollars
from moesaic.plan.device import Device
from moesaic.plan.flops import parameter_flops, training_flops
from moesaic.plan.job import Job
from moesaic.plan.layouts import Array, Layouts
from moesaic.plan.memory import Memory, memory
from moesaic.plan.shape import Shape
from moesaic.plan.sheet import Interval, Value
from moesaic.plan.stack import Stack
from moesaic.plan.step import PARTS, StepTime, step_time

QUANTILE = 1.2816  # of the normal distribution at 90 %


def uncertain(value: float, sigma: float, most: float = math.inf) -> Interval:
    """A log-normal quantity with this median; nothing of it lies above `most`."""
    low, high = value * math.exp(-QUANTILE * sigma), value * math.exp(QUANTILE * sigma)
    return Interval(min(low, most), min(value, most), min(high, most))


def sigma_of(shape: Shape, stack: Stack) -> float:
    """Standard deviation of log(published / predicted) for models of that kind."""
    return stack.sigma_sparse if shape.sparse_layers else stack.sigma


@dataclass(frozen=True)
class Choice:
    """One layout. Times in seconds, sizes in bytes."""

    shape: Shape
    job: Job  # with the batch that the layout really takes
    device: Device
    stack: Stack
    layouts: Layouts  # one
    gpus: int  # asked for
    goodput: float
    memory: Memory
    step: StepTime

    @property
    def layout(self) -> Mapping[str, int | str]:
        """Degrees by name."""
        return self.layouts.row(0)

    @property
    def used(self) -> int:
        """Devices that compute."""
        return int(self.layouts.world[0])

    @property
    def micro_batches(self) -> int:
        """Of one replica in a step."""
        return int(self.step.micro_batches[0])

    @property
    def step_s(self) -> float:
        """Median seconds of a step."""
        return float(self.step.total[0])

    @property
    def tokens_per_s(self) -> float:
        """Median, while all is well."""
        return self.job.batch_tokens / self.step_s

    @property
    def tokens_per_expert(self) -> float:
        """Tokens of a batch that an expert sees on average; all of them in a dense model."""
        return self.job.batch_tokens * self.shape.top_k / self.shape.n_experts

    def utilisation(self, flop_per_token: float) -> float:
        """Share of the peak of the devices that compute."""
        return self.tokens_per_s * flop_per_token / (self.used * self.device.peak(self.job.precision))

    @property
    def mfu(self) -> Interval:
        """Matrix products of the model, scores below the diagonal, no recomputation."""
        return uncertain(self.utilisation(training_flops(self.shape, self.job.seq_len)), self.sigma, 1.0)

    @property
    def mfu_6n(self) -> Interval:
        """The same by 6 FLOP per active parameter and token."""
        return uncertain(self.utilisation(3 * parameter_flops(self.shape)), self.sigma, 1.0)

    @property
    def sigma(self) -> float:
        """Of the logarithm of every time."""
        return sigma_of(self.shape, self.stack)

    def days(self, tokens: float) -> Interval:
        """Days for `tokens`, failures included."""
        return uncertain(tokens / (self.tokens_per_s * self.goodput * 86_400), self.sigma)

    def dollars(self, tokens: float, price: Interval | float | None) -> Interval | None:
        """Dollars for `tokens` at `price` per device-hour: all devices asked for are paid."""
        found: Interval | None = None if price is None else dollars(self.gpus, self.days(tokens), price)
        return found

    def seconds(self) -> dict[str, float]:
        """Parts of the step by name."""
        return {name: float(np.broadcast_to(getattr(self.step, name), 1)[0]) for name in PARTS}

    def row(self, tokens: float, price: Interval | float | None) -> dict[str, Value]:
        """The layout as a row of a table."""
        out: dict[str, Value] = {"gpus": self.gpus, **self.layout}
        out |= {
            "micro_batches": self.micro_batches,
            "batch_sequences": self.job.batch,
            "batch_tokens": self.job.batch_tokens,
            "tokens_per_expert": self.tokens_per_expert,
            "memory_gb": float(self.memory.total[0]) / 1e9,
            "step_s": self.step_s,
            "bubble": float(self.step.bubble_fraction[0]),
            "mfu": self.mfu,
            "days": self.days(tokens),
        }
        return out | ({} if price is None else {"usd": self.dollars(tokens, price)})


def choices(
    shape: Shape, job: Job, device: Device, stack: Stack, layouts: Layouts, gpus: Array, goodput: Array
) -> list[Choice]:
    """Layouts worked out, in order; `gpus` are those asked for, `goodput` the share of time that is work kept."""
    if not len(layouts):
        return []
    held, step = memory(shape, job, layouts, stack), step_time(shape, job, layouts, device, stack)
    real = layouts.micro_batches(job.batch) * layouts.dp * layouts.micro_batch
    return [
        Choice(
            shape,
            replace(job, batch=int(real[i])),
            device,
            stack,
            layouts[np.array([i])],
            int(gpus[i]),
            float(goodput[i]),
            _only(held, i, len(layouts)),
            _only(step, i, len(layouts)),
        )
        for i in range(len(layouts))
    ]


def _only(table: Any, index: int, length: int) -> Any:
    """Entry `index` of a dataclass of arrays, as arrays of one."""
    return type(table)(*(np.broadcast_to(v, length)[index : index + 1] for v in vars(table).values()))
