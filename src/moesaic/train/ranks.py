"""Agreement among ranks: what fails on one fails on all, so that none waits for a rank that has gone another way."""

import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

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
        outcome: list[_Outcome[T] | None] = [_attempt(action) if self.rank == 0 else None]
        mine = outcome[0]
        try:
            dist.broadcast_object_list(outcome, src=0, group=self.group)
        except RuntimeError as error:
            raise _lost(error) from error
        return _results([mine or outcome[0]])[0]  # type: ignore[list-item]

    def on_all(self, action: Callable[[], T]) -> list[T]:
        """Run `action` on every rank and give all results, in order of rank, to all of them.

        When it raises on some, all raise the exception of the first of these.
        """
        if self.group is None:
            return [action()]
        mine = _attempt(action)
        outcomes: list[_Outcome[T]] = [mine] * self.size
        try:
            dist.all_gather_object(outcomes, mine, group=self.group)
        except RuntimeError as error:
            raise _lost(error) from error
        outcomes[self.rank] = mine  # with its traceback
        return _results(outcomes)


_Outcome = tuple[T | None, Exception | None]


def _attempt(action: Callable[[], T]) -> _Outcome[T]:
    try:
        return action(), None
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return None, RuntimeError(f"{type(error).__name__}: {error}")
        return None, error


def _results(outcomes: list[_Outcome[T]]) -> list[T]:
    for _, error in outcomes:
        if error is not None:
            raise error
    return [result for result, _ in outcomes]  # type: ignore[misc]


def _lost(error: RuntimeError) -> RankLostError:
    return RankLostError(f"a rank does not answer ({str(error).partition(chr(10))[0]})")
