"""What fails on one rank fails on all, so that none waits for a rank that has gone another way."""

import pickle
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist
from torch.distributed import ProcessGroup

T = TypeVar("T")
Outcome = tuple[T | None, Exception | None]


def of_first(action: Callable[[], T], rank: int, group: ProcessGroup | None) -> Outcome[T]:
    """What `action` gives or raises on rank 0 of all, on every rank. Raises RuntimeError when a rank is silent."""
    mine: Outcome[T] | None = attempt(action) if rank == 0 else None
    outcomes = [mine]
    dist.broadcast_object_list(outcomes, src=0, group=group)
    return mine or outcomes[0]  # type: ignore[return-value]


def of_each(action: Callable[[], T], rank: int, group: ProcessGroup | None) -> list[Outcome[T]]:
    """What `action` gives or raises on each rank, in order, on every rank. Raises RuntimeError when one is silent."""
    mine = attempt(action)
    outcomes: list[Outcome[T]] = [mine] * dist.get_world_size(group)
    dist.all_gather_object(outcomes, mine, group=group)
    outcomes[rank] = mine  # with its traceback
    return outcomes


def attempt(action: Callable[[], T]) -> Outcome[T]:
    """The result and no error, or an error that can be sent."""
    try:
        return action(), None
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return None, RuntimeError(f"{type(error).__name__}: {error}")
        return None, error


def result(outcome: Outcome[T]) -> T:
    """The result; raises the error."""
    value, error = outcome
    if error is not None:
        raise error
    return value  # type: ignore[return-value]
