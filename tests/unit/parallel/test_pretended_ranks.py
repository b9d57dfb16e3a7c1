"""Torch's fake process group, and shapes of pieces on ranks that do not exist."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from moesaic.parallel.private import local_shape, pretended_ranks


def test_one_of_many_ranks_and_none_afterwards() -> None:
    with pretended_ranks(24_959, 24_960):
        assert (dist.get_rank(), dist.get_world_size()) == (24_959, 24_960)
        dist.all_reduce(torch.ones(1))  # nobody is waited for
    assert not dist.is_initialized()


def test_the_group_ends_with_an_error_inside() -> None:
    with pytest.raises(ValueError, match="inside"), pretended_ranks(0, 2):
        raise ValueError("inside")
    assert not dist.is_initialized()


@pytest.mark.parametrize(("rank", "rows"), [(0, 3), (3, 1)])
def test_a_piece_has_the_rows_of_its_rank(rank: int, rows: int) -> None:
    with pretended_ranks(rank, 4):
        weight = distribute_tensor(torch.empty(10, 2, device="meta"), init_device_mesh("cpu", (4,)), [Shard(0)])
        assert local_shape(weight, weight.placements) == tuple(weight.to_local().shape) == (rows, 2)
        assert local_shape(weight, [Replicate()]) == (10, 2)
