"""What the engine tells of each step and of each answer: plain data for metrics, the live view and traces."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class StepRecord:
    """One step, after it."""

    number: int
    at: float
    """When it ended, seconds since the epoch."""
    seconds: float
    predicted_s: float | None
    prompt_positions: int
    """Positions of prompts that were computed."""
    batch: int
    """Answers that were being written."""
    new_tokens: int
    running: int
    waiting: int
    blocks_used: int
    """Blocks of keys and values that requests hold."""
    drafted: int
    accepted: int
    shift: float
    """Total-variation shift, summed over the new tokens."""
    lenient: int
    """New tokens that the exact rule would have rejected."""
    experts: tuple[tuple[int, ...], ...] = ()
    """`[layers][experts]`: positions that each expert computed."""


@dataclass
class Usage:
    """What one answer took. Times in seconds of a monotonic clock."""

    prompt_tokens: int
    cached_tokens: int = 0
    """Of the prompt, taken from the prefix cache."""
    completion_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    lenient: int = 0
    shift: float = 0.0
    """Sum over tokens; divide by `completion_tokens` for the mean."""
    arrived: float = 0.0
    started: float | None = None
    """When its first step began."""
    first_token: float | None = None
    ended: float | None = None
    token_times: list[float] = field(default_factory=list)
    """When each token became known."""
