"""What the audit says of a claim, and how near is near enough."""

from collections.abc import Sequence
from dataclasses import dataclass

from moesaic.plan.audit.claims import Claim

# The one tolerance: the most that rounding to two digits can do (1.05 to 1.1, or to 1.0). Claims are spoken in two.
TOLERANCE = 1 / 21
NEARLY = 3 * TOLERANCE
EXACT = 1e-9  # of floating-point arithmetic


@dataclass(frozen=True)
class Computed:
    """A reading with its value in the claim's unit (None: another dimension) and whether the claim holds under it."""

    name: str
    expression: str
    value: float | None
    unit: str  # of the claim, or the base unit of a value of another dimension
    holds: bool


@dataclass(frozen=True)
class Verdict:
    """What became of a claim. `factor` and `slip` only where one explains it, `corrected` where it does not hold."""

    claim: Claim
    verdict: str  # ok, tension, garbled, loose, wrong, impossible, not checkable
    computed: Sequence[Computed] = ()
    slip: str = ""
    factor: float | None = None
    corrected: str = ""
    note: str = ""
    nearest: float | None = None  # feasible count nearest to the claimed one, where counts are what is wrong

    @property
    def label(self) -> str:
        """The verdict with its factor: `garbled x1000`, `garbled (unit)`."""
        if self.verdict == "garbled":
            return f"garbled x{self.factor:g}" if self.factor else f"garbled ({self.slip})"
        return self.verdict
