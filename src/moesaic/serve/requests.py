"""A request as the scheduler sees it: numbers only."""

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """Tokens to continue. `id` is the caller's, and unique among those that are here."""

    id: int
    prompt: tuple[int, ...]
    max_tokens: int
    stop_ids: frozenset[int] = frozenset()
    priority: int = 0
    """Each level goes before `PRIORITY_LEAD` requests that came earlier, so that nobody waits for ever."""
    root: Hashable = None
    """What else the keys and values depend on (images, adapters): prompts under another root share nothing."""
