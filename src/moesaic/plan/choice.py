"""A layout chosen, with the devices asked for: days, dollars and energy of a run, reckoned alike for all verbs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesaic.plan.cost import dollars, energy_mwh, megawatts
from moesaic.plan.device import Device
from moesaic.plan.estimate import Estimate
from moesaic.plan.job import Job
from moesaic.plan.layouts import Array, Layouts
from moesaic.plan.memory import memory
from moesaic.plan.shape import Shape
from moesaic.plan.sheet import Interval, Value
from moesaic.plan.stack import Stack
from moesaic.plan.step import PARTS, step_time

POWER_SHARE = 0.85  # of its rated power that a device draws on average in training (our assumption)


@dataclass(frozen=True)
class Choice:
    """One layout on `gpus` devices, of which some may idle. `goodput`: share of time that is work kept."""

    estimate: Estimate
    gpus: int
    goodput: float

    @property
    def layout(self) -> Mapping[str, int | str]:
        """Degrees by name."""
        return self.estimate.layout.row(0)

    @property
    def tokens_per_s(self) -> float:
        """Median, while all is well."""
        return self.estimate.tokens / self.estimate.seconds.p50

    @property
    def tokens_per_expert(self) -> float:
        """Tokens of a batch that an expert sees on average; all of them in a dense model."""
        return self.estimate.tokens_per_expert

    def days(self, tokens: float) -> Interval:
        """Days for `tokens`, failures included."""
        return Interval.around(tokens / (self.tokens_per_s * self.goodput * 86_400), self.estimate.sigma)

    def dollars(self, tokens: float, price: Interval | float | None) -> Interval | None:
        """Dollars for `tokens` at `price` per device-hour: all devices asked for are paid."""
        found: Interval | None = None if price is None else dollars(self.gpus, self.days(tokens), price)
        return found

    def power_mw(self, pue: float) -> float:
        """Megawatts of the devices at work, on average."""
        e = self.estimate
        found: float = megawatts(e.devices, e.device.watts, e.device.host_watts, utilisation=POWER_SHARE, pue=pue)
        return found

    def energy_mwh(self, tokens: float, pue: float) -> Interval:
        """Energy of the run."""
        e = self.estimate
        found: Interval = energy_mwh(
            e.devices, self.days(tokens), e.device.watts, e.device.host_watts, utilisation=POWER_SHARE, pue=pue
        )
        return found

    def seconds(self) -> dict[str, float]:
        """Parts of the step by name."""
        return {name: float(getattr(self.estimate.time, name)[0]) for name in PARTS}

    def row(self, tokens: float, price: Interval | float | None) -> dict[str, Value]:
        """The layout as a row of a table."""
        found = self.estimate
        out: dict[str, Value] = {"devices_asked": self.gpus, **self.layout}
        out |= {
            "micro_batches": found.micro_batches,
            "batch_sequences": found.sequences,
            "batch_tokens": found.tokens,
            "batch_tokens_per_expert": self.tokens_per_expert,
            "memory_gb": found.bytes_needed / 1e9,
            "step_time_s": found.seconds.p50,
            "bubble_share": float(found.time.bubble_fraction[0]),
            "mfu_share": found.mfu,
            "days": self.days(tokens),
        }
        return out | ({} if price is None else {"run_usd": self.dollars(tokens, price)})


def choices(
    shape: Shape, job: Job, device: Device, stack: Stack, layouts: Layouts, gpus: Array, goodput: Array
) -> list[Choice]:
    """Layouts worked out, in order; `gpus` are those asked for, `goodput` the share of time that is work kept."""
    if not len(layouts):
        return []
    held, time = memory(shape, job, layouts, stack), step_time(shape, job, layouts, device, stack)

    def only(table: Any, i: int) -> Any:
        return type(table)(*(np.broadcast_to(v, len(layouts))[i : i + 1] for v in vars(table).values()))

    return [
        Choice(
            Estimate(shape, job, device, stack, layouts[i : i + 1], only(held, i), only(time, i)),
            int(gpus[i]),
            float(goodput[i]),
        )
        for i in range(len(layouts))
    ]
