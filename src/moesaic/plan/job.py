"""What is to be trained, apart from the model and the layout."""

from dataclasses import dataclass

from moesaic.errors import PlanError

OPTIMIZER_BYTES = 12  # fp32 master weights and two fp32 moments of Adam


@dataclass(frozen=True)
class Job:
    """One step of training. Batches count sequences; `imbalance` is the load of the busiest expert over the mean."""

    seq_len: int
    batch: int
    precision: str = "bf16"
    gradient_bytes: int = 4
    optimizer_bytes: int = OPTIMIZER_BYTES
    imbalance: float = 1.0
    zero_bubble: bool = False

    def __post_init__(self) -> None:
        for name in ("seq_len", "batch", "gradient_bytes", "optimizer_bytes"):
            if getattr(self, name) <= 0:
                raise PlanError(f"{name} = {getattr(self, name)}; give a positive number")
        if self.imbalance < 1:
            raise PlanError(f"imbalance = {self.imbalance}: the busiest expert has at least the mean load, 1")

    @property
    def batch_tokens(self) -> int:
        """Tokens of a global batch."""
        return self.seq_len * self.batch
