"""What torch keeps private and we need: every such name stands here and has a test; a new torch breaks one file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import (
    AsyncCollectiveTensor,
    all_gather_single_autograd,
    all_to_all_single_autograd,
    reduce_scatter_single_autograd,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import Store, _get_default_store
from torch.distributed.tensor import DTensor, Placement
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def unflatten(world: DeviceMesh, sizes: Sequence[int], names: Sequence[str]) -> DeviceMesh:
    """Another view of a one-dimensional mesh, the last dimension fastest."""
    return world._unflatten(0, tuple(sizes), tuple(names))


def box_of(weight: DTensor) -> tuple[slice, ...]:
    """Which box of the whole tensor this rank holds."""
    shape, offset = compute_local_shape_and_global_offset(weight.shape, weight.device_mesh, weight.placements)
    return tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))


def local_shape(weight: DTensor, placements: Sequence[Placement]) -> tuple[int, ...]:
    """Shape of this rank's piece if `weight` were placed like that on its mesh."""
    return tuple(compute_local_shape_and_global_offset(weight.shape, weight.device_mesh, placements)[0])


def shared_store() -> Store:
    """The store over which the default process group met."""
    return _get_default_store()


@contextmanager
def pretended_ranks(rank: int, size: int) -> Iterator[None]:
    """A process group in which this process is one of `size`, the others do not exist and nothing is sent.

    Meshes and sharded weights come out as on that rank; results of collectives have no meaning.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def arrived(x: Tensor) -> Tensor:
    """Wait for a collective here: our own autograd functions and kernels take plain tensors."""
    return x.wait() if isinstance(x, AsyncCollectiveTensor) else x


def local(weight: Tensor) -> Tensor:
    """The piece on this rank; what is not distributed is its own piece."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


__all__ = [
    "all_gather_single_autograd",
    "all_to_all_single_autograd",
    "arrived",
    "box_of",
    "local",
    "local_shape",
    "pretended_ranks",
    "reduce_scatter_single_autograd",
    "shared_store",
    "unflatten",
]
