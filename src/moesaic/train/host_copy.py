"""A copy of this rank's state in host memory, which the next save overwrites.

The buffers stay between saves: touching fresh pages costs several times what the copy itself does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Piece:
    """What one rank holds of one tensor."""

    host: Tensor  # its values, in host memory
    size: torch.Size  # of the whole tensor
    chunk: ChunkStorageMetadata  # which rectangle of the whole tensor `host` is


class HostCopy:
    """Buffers by name. Names that a save leaves out keep theirs for the save that has them again."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Any, Piece]] = {}

    def begin(self, tensors: Mapping[str, Tensor]) -> "Pending":
        """Lay out buffers for these tensors, without copying. The pieces of an earlier call are overwritten.

        Raises TypeError for a DTensor whose ranks hold addends (a Partial placement).
        """
        pieces: dict[str, Piece] = {}
        locals_: list[Tensor] = []
        for name, tensor in tensors.items():
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            layout = (tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else None
            key = (tensor.shape, tensor.dtype, tensor.device, local.stride(), layout)
            kept = self._kept.get(name)
            if kept is None or kept[0] != key:
                self._kept.pop(name, None)  # its memory first
                chunk = chunk_of(name, tensor)
                host = torch.empty_like(local, device="cpu", pin_memory=local.is_cuda)  # same strides: copied in one go
                kept = self._kept[name] = (key, Piece(host, tensor.shape, chunk))
            pieces[name] = kept[1]
            locals_.append(local)
        return Pending(pieces, locals_)


class Pending:
    """A copy that is laid out; `copy` makes it, in any thread, before which the tensors must not change."""

    def __init__(self, pieces: dict[str, Piece], sources: list[Tensor]) -> None:
        self.pieces, self._sources = pieces, sources
        self._device = next((s.device for s in sources if s.is_cuda), None)
        # What the calling thread has queued on the device up to now belongs to the state that is saved.
        self._ready = None if self._device is None else torch.cuda.current_stream(self._device).record_event()

    def copy(self) -> None:
        """Copy, wait until it is done, and let go of the tensors."""
        if self._device is None:
            self._each()
        else:
            stream = torch.cuda.Stream(self._device)
            stream.wait_event(self._ready)  # type: ignore[arg-type]
            with torch.cuda.device(self._device), torch.cuda.stream(stream):
                self._each()
            stream.synchronize()
        self._sources = []

    def _each(self) -> None:
        for piece, source in zip(self.pieces.values(), self._sources, strict=True):
            if source.is_cpu and source.numel() and source.stride() == piece.host.stride():
                np.copyto(_bytes_of(piece.host), _bytes_of(source))
            else:
                piece.host.copy_(source, non_blocking=True)


def _bytes_of(dense: Tensor) -> "np.ndarray[Any, Any]":
    """The memory of a tensor without gaps, for NumPy to copy in this thread alone.

    torch would put its team of threads to it, which is hardly faster, and many times slower where it meets the team of
    another thread, such as training's, on the same cores.
    """
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8).numpy()


def chunk_of(name: str, tensor: Tensor) -> ChunkStorageMetadata:
    """Which rectangle of the whole tensor this rank holds. Raises TypeError when it holds none that can be stored."""
    if not isinstance(tensor, DTensor):
        return ChunkStorageMetadata(torch.Size([0] * tensor.ndim), tensor.shape)
    if any(p.is_partial() for p in tensor.placements):
        raise TypeError(f"state {name!r} is a DTensor of addends ({tensor.placements}); reduce it before it is saved")
    (chunk,) = tensor.__create_chunk_list__()
    local = tensor.to_local().shape
    if chunk.sizes != local:
        raise TypeError(f"state {name!r} holds {tuple(local)} here, its placements say {tuple(chunk.sizes)}")
    result: ChunkStorageMetadata = chunk
    return result
