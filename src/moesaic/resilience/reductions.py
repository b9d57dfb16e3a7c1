"""What this rank brings into FSDP2's reduction of gradients, which it can still see, before it becomes a sum."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule


class WatchedReduction:
    """The reduce-scatter of one FSDP2 module (`FSDPModule.set_custom_reduce_scatter`), looked at on the way.

    `inner` is the one that the layout asks for, FSDP2's default without one.
    """

    def __init__(self, name: str, inner: Callable[..., dist.Work | None] | None = None) -> None:
        self.name = name
        self.inner = inner or dist.reduce_scatter_single
        self.took = 0.0  # seconds of looking in this step
        self._looks = False
        self._largest: list[Tensor] = []

    def begin(self, looks: bool) -> None:
        """A step begins, in which inputs are looked at or not."""
        self._looks, self._largest, self.took = looks, [], 0.0

    def finite(self) -> bool:
        """Whether all inputs of this step were; True when nobody looked."""
        return all(math.isfinite(largest.item()) for largest in self._largest)

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for inputs and outputs."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> dist.Work | None:
        """Sum over ranks, a piece for each."""
        if self._looks:
            began = time.perf_counter()
            self._largest.append(torch.linalg.vector_norm(input_tensor, math.inf))
            self.took += time.perf_counter() - began
        return self.inner(output_tensor, input_tensor, group=group, op=op, async_op=async_op)


def watch_reductions(parts: Sequence[nn.Module]) -> list[WatchedReduction]:
    """Watch every FSDP2 module of this rank; none where gradients are reduced after the backward pass."""
    found = []
    for part in parts:
        for name, module in part.named_modules():
            if isinstance(module, FSDPModule):
                reduction = WatchedReduction(name, getattr(module, "reduction", None))
                module.set_custom_reduce_scatter(reduction)  # type: ignore[arg-type]
                found.append(reduction)
    return found
