"""Who this process is among all that train together. Started by torchrun, or alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist

from moesaic.errors import LayoutError, MoesaicError
from moesaic.parallel.launched import local_rank, meeting_point, rank_here, world_size

T = TypeVar("T")

LIMIT_S = 1800.0  # a collective that takes longer has lost a partner


@dataclass(frozen=True)
class World:
    """This process among all. Without torchrun's variables: alone, and no process group exists."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this process keeps the books: writes the run folder, speaks to the user."""
        return self.rank == 0

    @classmethod
    def join(cls, limit_s: float = LIMIT_S) -> Self:
        """Join the processes that torchrun started: gloo between CPUs, NCCL between GPUs.

        `limit_s`: seconds after which a collective without an answer ends the process. Raises LayoutError.
        """
        size, device = world_size(), _device(local_rank())
        if size == 1:
            return cls(device=device)
        if not dist.is_initialized():
            try:
                backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
                # NCCL makes groups faster when it knows the device.
                on = device if device.type == "cuda" else None
                dist.init_process_group(backend, timeout=timedelta(seconds=limit_s), device_id=on)
            except (RuntimeError, ValueError) as error:  # torch's DistError is a RuntimeError
                first = str(error).partition("\n")[0]
                alone = LayoutError(
                    f"rank {rank_here()} of {size} did not meet the others at {meeting_point()}: {first}; "
                    "is the port in use, or did a rank end before?"
                )
                alone.everywhere = False
                raise alone from error
        return cls(dist.get_rank(), dist.get_world_size(), device)

    def leave(self) -> None:
        """End the process group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()

    def on_first(self, action: Callable[[], T]) -> T:
        """What `action` gives on the first rank, or the error that it raises there, on every rank."""
        if self.size == 1:
            return action()
        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome[0] = action()
            except (MoesaicError, OSError) as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

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
