"""Bytes that this rank sends through torch.distributed, counted where the collectives are called.

    with CommBytes() as sent:
        engine.accumulate(...)
    sent.total, sent.by_operation()["all_to_all"], sent.rows()

Convention (that of `moesaic.plan.traffic`): rings, whatever the back end does. Of a buffer of n ranks each sends
(n - 1) / n to gather or reduce-scatter it, twice that to all-reduce it; all to all, the rows that leave the rank,
counted exactly where they are uneven.

The profiler sees the same calls, but over gloo neither the size of the group nor the type of tensors that come in
lists; `CommDebugMode` fails when an FSDP root runs more than once a step. A dispatch mode gets the tensors themselves.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import _resolve_process_group
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

QUIET = {"barrier", "monitored_barrier_", "recv_", "recv_any_source_", "wait_tensor", "_wrap_tensor_autograd"}


@dataclass(frozen=True)
class Sent:
    """Calls of one operation in one group, and the bytes that left this rank in them."""

    operation: str
    ranks: tuple[int, ...]
    calls: int
    bytes: float


class CommBytes(TorchDispatchMode):
    """Counts while it is entered. Collectives called below Python (none of torch's are on a CPU) are not seen."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: Counter[tuple[str, tuple[int, ...]]] = Counter()
        self._bytes: Counter[tuple[str, tuple[int, ...]]] = Counter()

    def rows(self) -> list[Sent]:
        """By operation and group, in the order of their first calls."""
        return [Sent(*key, calls, self._bytes[key]) for key, calls in self._calls.items()]

    def by_operation(self) -> dict[str, float]:
        """Bytes of each operation over all groups."""
        out: Counter[str] = Counter()
        for row in self.rows():
            out[row.operation] += row.bytes
        return dict(out)

    @property
    def total(self) -> float:
        """Bytes of all."""
        return sum(row.bytes for row in self.rows())

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it calls collectives on its own, which come back here
        if func.namespace in ("c10d", "_c10d_functional"):
            self._count(func.overloadpacket.__name__, args)
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, args: tuple[Any, ...]) -> None:
        if name in QUIET:
            return
        if name not in OPERATIONS:
            raise RuntimeError(f"{name} sends bytes that nothing here counts; add it to OPERATIONS")
        operation, place, bytes_of = OPERATIONS[name]
        group = _group(args)
        key = (operation, tuple(torch.distributed.get_process_group_ranks(group)))
        self._calls[key] += 1
        self._bytes[key] += bytes_of(list(_tensors(args[place])), group, args)


def _group(args: tuple[Any, ...]) -> ProcessGroup:
    """The group of a call: an object in c10d, the last argument's name in functional collectives."""
    for arg in args:
        if isinstance(arg, torch.ScriptObject):
            try:
                return ProcessGroup.unbox(arg)
            except RuntimeError:  # the reduction is an object too
                continue
    found: ProcessGroup = _resolve_process_group(args[-1])
    return found


def _tensors(arg: Any) -> Iterator[Tensor]:
    if isinstance(arg, Tensor):
        yield arg
    else:
        for inner in arg:
            yield from _tensors(inner)


def _size(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


Counting = Callable[[list[Tensor], ProcessGroup, tuple[Any, ...]], float]


def _gather(tensors: list[Tensor], group: ProcessGroup, args: tuple[Any, ...]) -> float:
    return _size(tensors) * (group.size() - 1)  # the tensors are this rank's pieces


def _scatter(tensors: list[Tensor], group: ProcessGroup, args: tuple[Any, ...]) -> float:
    return _size(tensors) * (group.size() - 1) / group.size()


def _reduce(tensors: list[Tensor], group: ProcessGroup, args: tuple[Any, ...]) -> float:
    return 2 * _scatter(tensors, group, args)


def _send(tensors: list[Tensor], group: ProcessGroup, args: tuple[Any, ...]) -> float:
    return _size(tensors)


def _broadcast(tensors: list[Tensor], group: ProcessGroup, args: tuple[Any, ...]) -> float:
    return _scatter(tensors, group, args)  # a chain: all but the last rank pass it on


def _exchange(place: int) -> Counting:
    """All to all; argument `place` holds how many rows go to each rank, none says equally many."""

    def count(tensors: list[Tensor], group: ProcessGroup, args: tuple[Any, ...]) -> float:
        (tensor,) = tensors
        splits = args[place]
        if not splits:
            return _scatter(tensors, group, args)
        row = prod(tensor.shape[1:]) * tensor.element_size()
        return float((sum(splits) - splits[group.rank()]) * row)

    return count


# Name of the call -> operation, argument that holds what is sent, how much of it leaves.
OPERATIONS: dict[str, tuple[str, int, Counting]] = {
    "allreduce_": ("all_reduce", 0, _reduce),
    "allreduce_coalesced_": ("all_reduce", 0, _reduce),
    "all_reduce": ("all_reduce", 0, _reduce),
    "all_reduce_": ("all_reduce", 0, _reduce),
    "all_reduce_coalesced": ("all_reduce", 0, _reduce),
    "allgather_": ("all_gather", 1, _gather),
    "_allgather_base_": ("all_gather", 1, _gather),
    "allgather_into_tensor_coalesced_": ("all_gather", 1, _gather),
    "all_gather_into_tensor": ("all_gather", 0, _gather),
    "all_gather_into_tensor_out": ("all_gather", 0, _gather),
    "all_gather_into_tensor_coalesced": ("all_gather", 0, _gather),
    "reduce_scatter_": ("reduce_scatter", 1, _scatter),
    "_reduce_scatter_base_": ("reduce_scatter", 1, _scatter),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1, _scatter),
    "reduce_scatter_tensor": ("reduce_scatter", 0, _scatter),
    "reduce_scatter_tensor_coalesced": ("reduce_scatter", 0, _scatter),
    "alltoall_base_": ("all_to_all", 1, _exchange(4)),
    "all_to_all_single": ("all_to_all", 0, _exchange(2)),
    "send": ("send", 0, _send),
    "broadcast_": ("broadcast", 0, _broadcast),
    "broadcast": ("broadcast", 0, _broadcast),
}
