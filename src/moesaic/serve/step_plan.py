"""What the scheduler asks of a runner, and what it hears: plain data, so that a runner may live in other processes.

Legend: a *step* runs the model once over the new tokens of several requests: a piece of a prompt, the one token that
was sampled last, or that token and a draft's guesses to be checked.
"""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class Work:
    """One request's part in a step."""

    request: int
    start: int
    """Position of the first new token: so many are in the request's blocks already."""
    tokens: tuple[int, ...]
    """New tokens, known ones."""
    blocks: tuple[int, ...]
    """Blocks of positions 0 to `start + len(tokens) + drafts`."""
    sample: bool
    """Whether the token after the last is wanted: not in the middle of a prompt."""
    drafts: int = 0
    """Guesses that may follow `tokens`, at most; the runner makes and checks them."""

    @property
    def width(self) -> int:
        """Positions that the model computes for it, at most."""
        return len(self.tokens) + self.drafts


@dataclass(frozen=True)
class StepPlan:
    """One step. `predicted_s` is what the scheduler expects of it, None before it has seen any."""

    number: int
    work: tuple[Work, ...]
    predicted_s: float | None = None

    @property
    def positions(self) -> int:
        """Positions that the model computes."""
        return sum(w.width for w in self.work)

    @property
    def context(self) -> int:
        """Positions whose keys and values are read, summed over requests."""
        return sum(w.start + w.width for w in self.work)


@dataclass(frozen=True)
class TokenNote:
    """What is known of a new token besides its number."""

    drafted: bool = False
    """A guess of the draft that was accepted."""
    lenient: bool = False
    """The exact rule would have rejected it."""
    shift: float = 0.0
    """Total-variation distance between the distribution it came from and the model's own."""
    logprob: float | None = None
    """Natural logarithm of its probability, when asked for."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with theirs."""


PLAIN = TokenNote()


@dataclass(frozen=True)
class Outcome:
    """What a step gave one request: certain new tokens, none in the middle of a prompt."""

    tokens: tuple[int, ...] = ()
    notes: tuple[TokenNote, ...] = ()
    """One for each token."""
    drafted: int = 0
    """Guesses that were checked."""


@dataclass(frozen=True)
class StepResult:
    """Outcomes in the order of the plan's work, and how long the step took."""

    number: int
    outcomes: tuple[Outcome, ...]
    seconds: float
    experts: tuple[tuple[int, ...], ...] = ()
    """`[layers][experts]`: positions that each expert computed; no row for a dense layer's single one."""


@dataclass(frozen=True)
class Event:
    """New tokens of a request for whoever reads its answer; with a reason when it has ended."""

    request: int
    tokens: tuple[int, ...]
    notes: tuple[TokenNote, ...] = ()
    finish: FinishReason | None = None
    cached: int = 0
    """Tokens of the prompt that came from the prefix cache."""
