"""Agreement among ranks over a group of its own, for work beside training: see `parallel.agree`."""

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from moesaic.parallel import agree

T = TypeVar("T")


class RankLostError(RuntimeError):
    """A rank no longer answers; no further agreement is possible."""


class Ranks:
    """All ranks of the run over a gloo group of their own, which no collective of training can get mixed up with.

    Every rank makes it, and makes every call, in the same order; one thread at a time. Without a process group there
    is one rank.
    """

    def __init__(self, patience: timedelta = timedelta(minutes=30)) -> None:
        """`patience` is how long a call waits for the slowest rank."""
        self.rank, self.size = 0, 1
        self.group: dist.ProcessGroup | None = None
        if dist.is_initialized() and dist.get_world_size() > 1:
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
            self.group = dist.new_group(backend="gloo", timeout=patience)

    def on_first(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0 and give its result, or its exception, to all ranks."""
        if self.group is None:
            return action()
        try:
            outcome = agree.of_first(action, self.rank, self.group)
        except RuntimeError as error:
            raise _lost(error) from error
        return agree.result(outcome)

    def on_all(self, action: Callable[[], T]) -> list[T]:
        """Run `action` on every rank and give all results, in order of rank, to all of them.

        When it raises on some, all raise the exception of the first of these.
        """
        if self.group is None:
            return [action()]
        try:
            outcomes = agree.of_each(action, self.rank, self.group)
        except RuntimeError as error:
            raise _lost(error) from error
        return [agree.result(outcome) for outcome in outcomes]


def _lost(error: RuntimeError) -> RankLostError:
    return RankLostError(f"a rank does not answer ({str(error).partition(chr(10))[0]})")
