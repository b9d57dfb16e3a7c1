"""Who this process is among all that train together. Started by torchrun, or alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Self, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from moesaic.errors import LayoutError, MoesaicError
from moesaic.parallel import agree
from moesaic.parallel.last_words import reason
from moesaic.parallel.launched import local_rank, meeting_point, rank_here, world_size

T = TypeVar("T")

MEETING_S = 120.0  # all start within this time of each other
LIMIT_S = 1800.0  # a collective that takes longer has lost a partner
PATIENCE = timedelta(days=7)  # for work of one rank alone; a rank that dies meanwhile is noticed at once


@dataclass(frozen=True)
class World:
    """This process among all. Without torchrun's variables: alone, and no process group exists."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    patient: dist.ProcessGroup | None = None
    """All ranks again, for waiting on what one of them does alone."""

    @property
    def is_first(self) -> bool:
        """Whether this process keeps the books: writes the run folder, speaks to the user."""
        return self.rank == 0

    @classmethod
    def join(cls, limit_s: float = LIMIT_S, meeting_s: float = MEETING_S) -> Self:
        """Join the processes that torchrun started: gloo between CPUs, NCCL between GPUs.

        `limit_s`: seconds after which a collective without an answer ends the process. `meeting_s`: seconds to wait
        for all to come. Raises LayoutError.
        """
        size, device = world_size(), _device(local_rank())
        if size == 1:
            return cls(device=device)
        try:
            if not dist.is_initialized():
                _meet(device, limit_s, meeting_s)
            patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        except (RuntimeError, ValueError, OSError) as error:  # torch's DistError is a RuntimeError
            alone = LayoutError(
                f"rank {rank_here()} of {size} did not meet the others at {meeting_point()}: {reason(error)}; "
                "start all ranks, on a port that is free"
            )
            alone.everywhere = False
            raise alone from error
        return cls(dist.get_rank(), dist.get_world_size(), device, patient)

    def leave(self) -> None:
        """End the process group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def barrier(self) -> None:
        """Wait for all, however long one of them works alone."""
        if self.size > 1:
            dist.barrier(self.patient)

    def on_first(self, action: Callable[[], T]) -> T:
        """What `action` gives on the first rank, or the error that it raises there, whatever it is, on every rank.

        The others wait as long as it takes.
        """
        if self.size == 1:
            return action()
        return agree.result(agree.of_first(action, self.rank, self.patient))

    def on_each(self, action: Callable[[], T]) -> T:
        """What `action` gives on this rank; when it raises on any, the error of the first of these on every rank."""
        if self.size == 1:
            return action()
        own: list[T] = []  # stays here: kernels, open files and the like cannot be sent
        outcomes = agree.of_each(lambda: own.append(action()), self.rank, self.patient)
        for rank, (_, found) in enumerate(outcomes):
            if isinstance(found, MoesaicError) and rank > 0:
                raise type(found)(f"rank {rank}: {found}")
            if found is not None:
                raise found
        return own[0]

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether any rank has it set."""
        if self.size == 1:
            return list(flags)
        seen = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(seen, dist.ReduceOp.MAX)
        return [bool(flag) for flag in seen.tolist()]

    def agree(self, what: str, value: str) -> None:
        """Raises LayoutError on every rank when they differ in `value`."""
        if self.size == 1:
            return
        values: list[str] = [""] * self.size
        dist.all_gather_object(values, value)
        if odd := [r for r, v in enumerate(values) if v != values[0]]:
            raise LayoutError(
                f"ranks disagree on {what}: rank 0 has {values[0]}, rank {odd[0]} has {values[odd[0]]}; "
                "start all of them with the same files and options"
            )


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _meet(device: torch.device, limit_s: float, meeting_s: float) -> None:
    """Make the default process group once all ranks are there: who waits for a connection waits for `limit_s`."""
    limit = timedelta(seconds=meeting_s)
    store, rank, size = next(rendezvous("env://", timeout=limit))
    store.set_timeout(limit)
    here = [f"moesaic/rank/{r}" for r in range(size)]
    store.set(here[rank], "here")
    try:
        store.wait(here, limit)
    except RuntimeError as error:
        missing = [r for r in range(size) if not store.check([here[r]])]
        if not missing:
            raise
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise TimeoutError(f"rank {missing[0]}{more} did not come within {meeting_s:g} s") from error
    backend, on = ("cpu:gloo,cuda:nccl", device) if device.type == "cuda" else ("gloo", None)
    patience = timedelta(seconds=limit_s)
    # NCCL makes groups faster when it knows the device.
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience, device_id=on)
