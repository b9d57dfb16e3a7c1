"""Where guesses come from: a smaller model that shares the tokenizer, or the request's own text.

Guesses need not be good for answers to be right; see verify.py.

Legend: R rows, M guesses of all requests, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from moesaic.serve.batch import StepBatch
from moesaic.serve.decoder import Decoder
from moesaic.serve.sampling import RowState
from moesaic.serve.step_plan import Work
from moesaic.serve.verify import draft_choose

LONGEST_MATCH, SHORTEST_MATCH = 4, 2  # tokens that a lookup must find again
CATCH_UP = 1024  # positions that a draft computes at once of what it missed


@dataclass(frozen=True)
class Asked:
    """A request that wants guesses, or whose draft must keep up."""

    work: Work
    guesses: int
    """0 to `work.drafts`."""
    row: RowState
    tokens: Sequence[int]
    """All that are known of it, from its beginning."""


@dataclass(frozen=True)
class Guessed:
    """Guesses of each request, and what they were drawn from, row after row; None when they are certain."""

    tokens: list[list[int]]
    q_MV: Tensor | None = None


class Draft(Protocol):
    """Makes guesses."""

    name: str

    def guess(self, asked: Sequence[Asked]) -> Guessed:
        """For each request in a step, in order."""

    def checked(self, request: int, start: int, accepted: int) -> None:
        """So many guesses stood, after the token at position `start`."""

    def end(self, request: int) -> None:
        """It will not come again."""


class Lookup:
    """Prompt lookup (Saxena 2023): what followed the last tokens when they were there before."""

    name = "prompt lookup"

    def guess(self, asked: Sequence[Asked]) -> Guessed:
        """See `Draft.guess`."""
        return Guessed([_continuation(a.tokens, a.guesses) if a.guesses else [] for a in asked])

    def checked(self, request: int, start: int, accepted: int) -> None:
        """Nothing to remember."""

    def end(self, request: int) -> None:
        """Nothing to forget."""


def _continuation(tokens: Sequence[int], count: int) -> list[int]:
    """What followed the latest earlier place with the same end, the longest end first."""
    for length in range(min(LONGEST_MATCH, len(tokens) - 1), SHORTEST_MATCH - 1, -1):
        end, last = list(tokens[-length:]), tokens[-1]
        for at in range(len(tokens) - 2, length - 2, -1):
            if tokens[at] == last and list(tokens[at - length + 1 : at + 1]) == end:
                return list(tokens[at + 1 : at + 1 + count])
    return []


class ModelDraft:
    """A smaller model over pages of its own, which have the same numbers as the model's."""

    def __init__(self, decoder: Decoder, name: str) -> None:
        self.decoder, self.name = decoder, name
        self._done: dict[int, int] = {}  # positions of each request that the draft's pages hold

    def guess(self, asked: Sequence[Asked]) -> Guessed:
        """See `Draft.guess`. Prompts are computed as they come, so that the prefix cache serves the draft too."""
        followed = [a for a in asked if a.guesses or len(a.work.tokens) > 1 or not a.work.sample]
        for a in followed:
            self._catch_up(a)
        guesses: dict[int, list[int]] = {id(a): [] for a in asked}
        drawn: dict[int, list[Tensor | None]] = {id(a): [] for a in asked}
        going = [a for a in followed if self._done[a.work.request] < a.work.start + len(a.work.tokens)]
        while going:
            wanted = [a for a in going if a.guesses]
            logits_RV, _ = self.decoder.step(StepBatch.of([self._next(a, guesses[id(a)]) for a in going]))
            if wanted:
                tokens, q_RV = draft_choose(logits_RV, [a.row for a in wanted], [guesses[id(a)] for a in wanted])
                for r, (a, token) in enumerate(zip(wanted, tokens, strict=True)):
                    guesses[id(a)].append(token)
                    drawn[id(a)].append(None if q_RV is None else q_RV[r])
            going = [a for a in wanted if len(guesses[id(a)]) < a.guesses]
        for a in followed:
            fed = max(0, len(guesses[id(a)]) - 1)
            self._done[a.work.request] = a.work.start + len(a.work.tokens) + fed
        found = [guesses[id(a)] for a in asked]
        rows = [(token, q) for a in asked for token, q in zip(guesses[id(a)], drawn[id(a)], strict=True)]
        if all(q is None for _, q in rows):
            return Guessed(found)
        return Guessed(found, torch.stack([_certain(token, rows) if q is None else q for token, q in rows]))

    def checked(self, request: int, start: int, accepted: int) -> None:
        """Keys and values of accepted guesses are there, but for the last one: nobody has computed it."""
        self._done[request] = min(self._done.get(request, start), start + 1 + accepted)

    def end(self, request: int) -> None:
        """Forget it."""
        self._done.pop(request, None)

    def _catch_up(self, a: Asked) -> None:
        """Compute what was missed while nobody asked for guesses."""
        request, start = a.work.request, a.work.start
        # Blocks given up and come again hold what the prefix cache had of them, which begins where the work does.
        done = min(self._done.get(request, start), start)
        while done < start:
            piece = tuple(a.tokens[done : min(done + CATCH_UP, start)])
            self.decoder.step(StepBatch.of([Work(request, done, piece, a.work.blocks, sample=False)]))
            done += len(piece)
        self._done[request] = done

    def _next(self, a: Asked, guesses: list[int]) -> Work:
        """What the draft computes of a request now: its new tokens, then guess by guess."""
        work = a.work
        if not guesses:
            return Work(work.request, work.start, work.tokens, work.blocks, sample=bool(a.guesses))
        at = work.start + len(work.tokens) + len(guesses) - 1
        return Work(work.request, at, (guesses[-1],), work.blocks, sample=True)


def _certain(token: int, rows: Sequence[tuple[int, Tensor | None]]) -> Tensor:
    like = next(q for _, q in rows if q is not None)
    return torch.zeros_like(like).index_fill_(0, torch.tensor([token], device=like.device), 1.0)
