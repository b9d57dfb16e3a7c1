"""What the parts of the server share: the engine, its name, who may ask, and what was counted."""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from anyio import CapacityLimiter

from moesaic.serve.api.errors import ApiError
from moesaic.serve.api.guard import Guard
from moesaic.serve.api.metrics import Metrics
from moesaic.serve.api.totals import Totals
from moesaic.serve.engine import Delivery, Engine

Inbox = asyncio.Queue[tuple[int, Delivery]]


class Handover:
    """Carries deliveries from the engine's thread to the event loop, which is woken once for all of a step."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Inbox, int, Delivery]] = deque()
        self._awake = False

    def put(self, loop: asyncio.AbstractEventLoop, inbox: Inbox, choice: int, delivery: Delivery) -> None:
        """From any thread."""
        self._waiting.append((inbox, choice, delivery))
        if not self._awake:
            self._awake = True
            try:
                loop.call_soon_threadsafe(self._deal)
            except RuntimeError:  # the loop has ended, and with it everybody who waited
                self._waiting.clear()

    def _deal(self) -> None:
        self._awake = False  # before the queue is read: what comes after wakes the loop again
        while self._waiting:
            inbox, choice, delivery = self._waiting.popleft()
            inbox.put_nowait((choice, delivery))


@dataclass
class Service:
    """One server."""

    engine: Engine
    name: str
    guard: Guard
    totals: Totals
    metrics: Metrics
    body_limit: int
    handover: Handover = field(default_factory=Handover)
    active: set[int] = field(default_factory=set)
    """Requests of the engine that somebody waits for."""
    encoding: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(2))
    """Texts that are turned into tokens at the same time."""
    draining: bool = False

    def __post_init__(self) -> None:
        self.description: dict[str, Any] = self.engine.description
        self.engine.observers += [self.totals.step, self.metrics.step]

    def check_model(self, name: str | None) -> None:
        """Raises ApiError for another model than this one."""
        if name is not None and name != self.name:
            raise ApiError(
                404, f"there is no model {name[:100]!r} here; this server has {self.name!r}",
                param="model", code="model_not_found",
            )  # fmt: skip

    def check_tokens(self, tokens: Mapping[str, object]) -> None:
        """Raises ApiError for a token id that the vocabulary does not have; by the name of the field."""
        size = self.engine.model.model.config.vocab_size
        for name, ids in tokens.items():
            if wrong := [i for i in ids if i >= size]:  # type: ignore[attr-defined]
                raise ApiError(
                    400, f"{name}: token {wrong[0]} is not in the vocabulary of {size}", param=name,
                    code="invalid_value",
                )  # fmt: skip
