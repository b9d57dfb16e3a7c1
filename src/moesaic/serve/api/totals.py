"""What was done since the start, and what it cost."""

import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesaic.serve.record import StepRecord, Usage


@dataclass(frozen=True)
class Price:
    """Of this machine. In which currency is for its owner to know."""

    per_hour: float

    def of(self, seconds: float) -> float:
        """Of so much of its time."""
        return self.per_hour * seconds / 3600


@dataclass(frozen=True)
class Mark:
    """Engine time and positions up to some moment."""

    prompt_s: float
    prompt_positions: int
    answer_s: float
    answer_positions: int


class Totals:
    """Sums over steps and answers. Steps are added by the engine's thread, answers by the event loop.

    The time of a step is shared among the positions it computed: of prompts, of answers, and of guesses that were
    rejected. The time in which nothing was to do costs too; it is in `wall` only.
    """

    def __init__(self, price: Price | None = None) -> None:
        self.price = price
        self.began = time.monotonic()
        self.steps = self.new_tokens = self.prompt_positions = self.drafted = self.accepted = self.lenient = 0
        self.busy_s = self.prompt_s = self.answer_s = self.waste_s = self.shift = 0.0
        self.answer_positions = 0
        self.experts_LE: NDArray[np.int64] = np.zeros((0, 0), np.int64)
        self.requests = self.prompt_tokens = self.cached_tokens = 0
        self.finishes: Counter[str] = Counter()

    def step(self, record: StepRecord) -> None:
        """Add a step."""
        self.steps += 1
        self.busy_s += record.seconds
        self.new_tokens += record.new_tokens
        self.prompt_positions += record.prompt_positions
        self.drafted += record.drafted
        self.accepted += record.accepted
        self.lenient += record.lenient
        self.shift += record.shift
        answers = record.batch + record.drafted
        self.answer_positions += answers
        share = record.seconds / max(1, record.prompt_positions + answers)
        self.prompt_s += share * record.prompt_positions
        self.answer_s += share * answers
        self.waste_s += share * (record.drafted - record.accepted)
        if record.experts:
            counts_LE = np.array(record.experts, np.int64)
            self.experts_LE = counts_LE + (self.experts_LE if self.experts_LE.size else 0)

    def answer(self, usage: Usage, finish: str) -> None:
        """Add an answer that has ended."""
        self.requests += 1
        self.finishes[finish] += 1
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += usage.cached_tokens

    def mark(self) -> Mark:
        """Now, for `cost`."""
        return Mark(self.prompt_s, self.prompt_positions, self.answer_s, self.answer_positions)

    def cost(self, usage: Usage, since: Mark) -> float | None:
        """Of one answer, at what a position cost while it was here; None without a price."""
        if self.price is None:
            return None
        now = self.mark()
        read = _unit(now.prompt_s, since.prompt_s, now.prompt_positions, since.prompt_positions)
        written = _unit(now.answer_s, since.answer_s, now.answer_positions, since.answer_positions)
        rejected = usage.drafted - usage.accepted
        seconds = read * (usage.prompt_tokens - usage.cached_tokens) + written * (usage.completion_tokens + rejected)
        return self.price.of(seconds)

    def per_1k(self) -> dict[str, float] | None:
        """Cost of 1,000 tokens: of prompts (those that were computed), generated ones, the part of these that is
        rejected guesses, and `wall`: of both kinds at the price of all the time since the start. None without a
        price or before there is anything to divide by.
        """
        tokens = self.prompt_positions + self.new_tokens
        if self.price is None or not self.new_tokens or not self.prompt_positions:
            return None
        return {
            "prompt": self.price.of(1000 * self.prompt_s / self.prompt_positions),
            "generated": self.price.of(1000 * self.answer_s / self.new_tokens),
            "waste": self.price.of(1000 * self.waste_s / self.new_tokens),
            "wall": self.price.of(1000 * (time.monotonic() - self.began) / tokens),
        }

    def for_page(self) -> dict[str, object]:
        """As the live view reads them."""
        return {
            "seconds": time.monotonic() - self.began,
            "busy_s": self.busy_s,
            "steps": self.steps,
            "requests": self.requests,
            "finishes": dict(self.finishes),
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "generated_tokens": self.new_tokens,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "lenient": self.lenient,
            "shift": self.shift,
        }


def _unit(now: float, before: float, positions: int, positions_before: int) -> float:
    """Seconds of a position since a mark, or since the start when none has been computed since."""
    if positions > positions_before:
        return (now - before) / (positions - positions_before)
    return now / positions if positions else 0.0
