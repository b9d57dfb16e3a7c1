"""One row of a validation table: what was published, what the planner says, and whether the pair counts."""

from dataclasses import dataclass

from moesaic.plan.sheet import Interval


@dataclass(frozen=True)
class Scored:
    """A published measurement beside its prediction. `reason` says why a row is listed and not scored."""

    id: str
    split: str  # fit: constants were tuned on it; check: reported only
    partition: str
    unit: str
    published: float
    predicted: Interval | None
    scored: bool
    reason: str = ""
