"""One layout priced: memory, time of a step, utilisation, each time with its interval."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moesaic.plan.device import Device
from moesaic.plan.flops import Recompute, parameter_flops, training_flops
from moesaic.plan.job import Job
from moesaic.plan.layouts import RECOMPUTE, Array, Layouts
from moesaic.plan.memory import Memory, memory
from moesaic.plan.shape import Shape
from moesaic.plan.sheet import Interval
from moesaic.plan.stack import Stack
from moesaic.plan.step import StepTime, step_time


@dataclass(frozen=True)
class Estimate:
    """What one layout needs and takes. `layout` has length 1, and so have the arrays of `memory` and `time`."""

    shape: Shape
    job: Job
    device: Device
    stack: Stack
    layout: Layouts
    memory: Memory
    time: StepTime

    @property
    def devices(self) -> int:
        """Devices at work."""
        return int(self.layout.world[0])

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a replica in a step."""
        return int(self.time.micro_batches[0])

    @property
    def sequences(self) -> int:
        """Sequences of the batch that really runs: whole micro-batches on every replica."""
        return self.micro_batches * int(self.layout.micro_batch[0] * self.layout.dp[0])

    @property
    def tokens(self) -> int:
        """Tokens of that batch."""
        return self.sequences * self.job.seq_len

    @property
    def tokens_per_expert(self) -> float:
        """Tokens of that batch that an expert sees on average; all of them in a dense model."""
        return self.tokens * self.shape.top_k / max(self.shape.n_experts, 1)

    @property
    def sigma(self) -> float:
        """Standard deviation of the logarithm of a time."""
        return self.stack.sigma_sparse if self.shape.sparse_layers else self.stack.sigma

    @cached_property
    def seconds(self) -> Interval:
        """Seconds of a step."""
        return Interval.around(float(self.time.total[0]), self.sigma)

    @property
    def peak(self) -> float:
        """Nominal FLOP/s of a device at the job's precision."""
        return self.device.peak(self.job.precision)

    def utilisation(self, flop_per_token: float) -> Interval:
        """Share of the peak that `flop_per_token` of useful arithmetic makes, while nothing fails."""
        middle = flop_per_token * self.tokens / (self.seconds.p50 * self.devices * self.peak)
        found = Interval.around(middle, self.sigma)
        return Interval(found.p10, found.p50, min(found.p90, 1.0))

    @property
    def mfu(self) -> Interval:
        """Utilisation by 6 FLOP per active parameter and token, as the described system's figures count."""
        return self.utilisation(3 * parameter_flops(self.shape))

    @property
    def mfu_with_attention(self) -> Interval:
        """Utilisation with the causal half of the attention scores."""
        return self.utilisation(training_flops(self.shape, self.job.seq_len))

    @property
    def hfu(self) -> Interval:
        """Utilisation with what is computed twice."""
        mode: Recompute = RECOMPUTE[int(self.layout.recompute[0])]
        if mode == "selective" and self.stack.flash:
            mode = "none"  # norms and activation functions again, no products
        return self.utilisation(training_flops(self.shape, self.job.seq_len, recompute=mode))

    @property
    def bytes_needed(self) -> float:
        """Memory on the heaviest stage, in bytes."""
        return float(self.memory.total[0])

    @property
    def fits(self) -> bool:
        """Whether that is there."""
        return self.bytes_needed <= self.device.memory_gb * 1e9


def estimate(shape: Shape, job: Job, device: Device, stack: Stack, layouts: Layouts) -> Estimate:
    """The layout that trains most tokens a second among those that fit; where none fits, the smallest.

    All of `layouts` pass `layouts.valid`.
    """
    space = memory(shape, job, layouts, stack)
    time = step_time(shape, job, layouts, device, stack)
    rate = time.micro_batches * layouts.micro_batch * layouts.dp / time.total
    fits = space.total <= device.memory_gb * 1e9
    chosen = int(np.argmax(np.where(fits, rate, 0.0)) if fits.any() else np.argmin(space.total))

    def one(array: Array) -> Array:
        return np.broadcast_to(array, len(layouts))[chosen : chosen + 1]

    return Estimate(
        shape,
        job,
        device,
        stack,
        layouts[chosen : chosen + 1],
        Memory(*(one(v) for v in vars(space).values())),
        StepTime(*(one(v) for v in vars(time).values())),
    )
