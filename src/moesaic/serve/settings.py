"""How to serve."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moesaic.errors import ServeError
from moesaic.model.kernels import KernelChoice

MOST_POSITIONS = 2048


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How to serve. `max_token_latency_s` is the knob; the rest has defaults that fit."""

    max_token_latency_s: float | None = None
    """Time between two tokens of an answer to stay under; None takes all that fits into a step."""
    kv_memory: int = 1 << 30
    """Bytes for keys and values."""
    block_size: int = 16
    """Positions in a block."""
    prefix_cache: bool = True
    max_running: int = 256
    max_waiting: int = 1024
    max_positions: int = 2048
    """New positions in a step."""
    draft: Path | Literal["lookup"] | None = None
    """A smaller model folder that guesses, or the prompt itself."""
    draft_length: int = 4
    kernels: KernelChoice = "auto"
    batch_invariant: bool = False
    """Answers do not depend, to the bit, on what else is served."""

    def __post_init__(self) -> None:
        """Raises ServeError for a number out of range."""
        cap = self.max_token_latency_s
        limits = (
            ("max_token_latency_s", cap is None or cap > 0, "above 0, or None for no cap"),
            ("block_size", self.block_size >= 1, "1 or more"),
            ("max_running", self.max_running >= 1, "1 or more"),
            ("max_waiting", self.max_waiting >= 1, "1 or more"),
            ("max_positions", 1 <= self.max_positions <= MOST_POSITIONS, f"from 1 to {MOST_POSITIONS}"),
            ("draft_length", self.draft_length >= 1, "1 or more"),
        )
        for name, fine, wanted in limits:
            if not fine:
                raise ServeError(f"{name} = {getattr(self, name)} is out of range; use {wanted}")

    @property
    def most_rows(self) -> int:
        """Rows that a step may have: prompts fill it up to `max_positions`, answers and guesses come whatever it is."""
        return max(MOST_POSITIONS, self.max_running * (1 + self.draft_length))
