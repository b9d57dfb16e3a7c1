"""The engine's requests of one HTTP call: submitted together, read as text, given up when nobody waits any more."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType

from moesaic.errors import OverloadedError
from moesaic.serve.answer import Answer, Piece, Shown
from moesaic.serve.api.errors import BUSY, OURS, ApiError, draining
from moesaic.serve.api.service import Inbox, Service
from moesaic.serve.api.totals import Mark
from moesaic.serve.engine import Delivery
from moesaic.serve.options import Options
from moesaic.serve.record import Usage
from moesaic.serve.step_plan import FinishReason, TokenNote


@dataclass
class Choice:
    """One answer of a call."""

    index: int
    prompt: Sequence[int]
    options: Options
    answer: Answer
    number: int = -1
    """Of the engine's request."""
    usage: Usage | None = None
    finish: FinishReason | None = None
    cost: float | None = None
    shown: list[Shown] = field(default_factory=list)
    """What has been handed out."""

    @property
    def text(self) -> str:
        """Of what has been handed out."""
        return "".join(token.text for token in self.shown)


class Asking:
    """Use as a context manager: entering submits every choice or none, leaving cancels what has not ended.

    Entering raises ApiError or MoesaicError.
    """

    def __init__(
        self, service: Service, prompts: Sequence[Sequence[int]], options: Options, n: int, priority: int
    ) -> None:
        """`n` answers to each prompt, with seeds counting up."""
        self._service, self._priority = service, priority
        tokenizer = service.engine.model.tokenizer
        self.choices = []
        for i, prompt in enumerate(prompt for prompt in prompts for _ in range(n)):
            own = replace(options, seed=options.seed + i % n)
            self.choices.append(Choice(i, prompt, own, Answer(tokenizer, own)))
        self._inbox: Inbox = asyncio.Queue()

    def __enter__(self) -> "Asking":
        if self._service.draining:
            raise draining()
        loop = asyncio.get_running_loop()
        self._mark: Mark = self._service.totals.mark()
        try:
            for choice in self.choices:
                sink = partial(self._service.handover.put, loop, self._inbox, choice.index)
                choice.number = self._service.engine.submit(choice.prompt, choice.options, sink, self._priority)
                self._service.active.add(choice.number)
        except BaseException as error:
            self._give_up()
            if isinstance(error, OverloadedError):
                raise self._overloaded(error) from error
            raise
        return self

    def _overloaded(self, error: OverloadedError) -> ApiError:
        health = self._service.engine.health()
        if not health.alive:
            return ApiError(503, health.reason, kind=OURS, code="engine_down")
        if not health.ready:
            return draining()
        wait = self._service.guard.mean_s / max(1, health.running)  # until one of those that run ends
        message = f"{error} (one of {health.running} running ones should end in about {max(1, math.ceil(wait))} s)"
        return ApiError(429, message, kind=BUSY, code="overloaded", retry_after=wait)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_up()

    def _give_up(self) -> None:
        for choice in self.choices:
            if choice.number >= 0 and choice.usage is None:
                self._service.engine.cancel(choice.number)
                self._service.totals.finishes["abort"] += 1
                self._service.totals.requests += 1
            self._service.active.discard(choice.number)

    async def pieces(self) -> AsyncIterator[tuple[Choice, Piece]]:
        """What becomes certain, until every choice has ended. Raises ApiError when the engine gives one up."""
        left = len(self.choices)
        while left:
            for index, deliveries in (await self._arrived()).items():
                choice, last = self.choices[index], deliveries[-1]
                tokens = [token for delivery in deliveries for token in delivery.tokens]
                notes: list[TokenNote] = [note for delivery in deliveries for note in delivery.notes]
                piece = choice.answer.push(tokens, notes, last.finish)
                if piece.stopped:
                    self._service.engine.stop_early(choice.number)
                if last.usage is not None:
                    self._end(choice, last.usage, last.finish or "abort")
                    left -= 1
                    if last.finish == "abort":
                        raise ApiError(503, "the server gave this answer up before its end", kind=OURS, code="aborted")
                choice.finish = choice.finish or piece.finish
                choice.shown += piece.tokens
                if piece.tokens or piece.finish:
                    yield choice, piece

    async def _arrived(self) -> dict[int, list[Delivery]]:
        """At least one delivery, and all that came with it: a slow reader gets fewer, larger pieces."""
        index, delivery = await self._inbox.get()
        found = {index: [delivery]}
        while not self._inbox.empty():
            index, delivery = self._inbox.get_nowait()
            found.setdefault(index, []).append(delivery)
        return found

    def _end(self, choice: Choice, usage: Usage, finish: FinishReason) -> None:
        choice.usage = usage
        choice.cost = self._service.totals.cost(usage, self._mark)
        self._service.active.discard(choice.number)
        self._service.totals.answer(usage, "stop" if choice.finish == "stop" else finish)
        self._service.metrics.answer(usage)
