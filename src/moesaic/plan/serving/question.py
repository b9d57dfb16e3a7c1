"""What `moesaic plan serve` is asked, and the intervals of its answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesaic.errors import PlanError
from moesaic.plan.serving.cost import Workload
from moesaic.plan.serving.profile import Profile
from moesaic.plan.serving.replica import Replica
from moesaic.plan.shape import Shape

UNFITTED_SIGMA = 0.25  # added in quadrature for a generation of devices without measurements of its own


@dataclass(frozen=True)
class Question:
    """Everything that `moesaic plan serve` was asked."""

    model: Replica
    context: int
    work: Workload
    batches: Sequence[int]  # sequences of a micro-batch; empty: powers of two up to what fits
    usd_per_gpu_hour: float
    price_source: str
    clusters: int = 1
    engine: str = "vllm"
    chunk: int = 1024
    first: int | None = None
    rate: float | None = None  # requests a second and replica
    target_usd: float | None = None
    pools: bool = False
    drafts: int = 0
    accept: float = 0.7
    draft_cost: float = 0.02
    other: Shape | None = None
    ratio: float = 3.0

    @property
    def price_words(self) -> str:
        """The price and its source, or that there is none."""
        if not self.price_source:
            return "no price of a device-hour"
        return f"${self.usd_per_gpu_hour:g} a device-hour ({self.price_source}), every device paid all the time"


def batches_of(q: Question, most: int, paged: int) -> list[int]:
    """The batches to price: those asked for, which must fit, or powers of two around the largest that does."""
    m = q.model
    if q.batches:
        if max(q.batches) > most:
            raise PlanError(
                f"batch {max(q.batches)} x {m.pp} stages x {m.dp} copies does not fit: {paged} sequences of "
                f"{q.work.context:,.0f} cached tokens do; use --batch {most} or less, or 8-bit weights"
                if most
                else f"not one sequence for each of {m.pp * m.dp} pipeline slots fits ({paged} do); shorten the context"
            )
        return sorted(set(q.batches))
    powers = [2**i for i in range(9) if 2**i <= max(2 * most, 8)]
    return sorted({*powers, max(most, 1)})


def sigmas(q: Question, constants: Profile) -> tuple[float, float]:
    """Residual spreads of decode and first-token times for this engine and device, as logarithms."""
    engine = constants.engine(q.engine)
    extra = 0.0 if q.model.device.generation in constants.generations else UNFITTED_SIGMA
    return float(np.hypot(engine.sigma_decode, extra)), float(np.hypot(engine.sigma_first, extra))
