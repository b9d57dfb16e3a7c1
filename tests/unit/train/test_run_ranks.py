"""The helper that runs tests on several ranks: results by rank, every failure told, nothing left running."""

import multiprocessing
import time

import pytest
import torch
import torch.distributed as dist

from ranks import Died, RanksFailed, die, run_ranks


def summed(rank: int, values: torch.Tensor) -> tuple[int, float, int]:
    dist.all_reduce(values.mul_(rank + 1))
    return rank, float(values.sum()), torch.get_num_threads()


def one_raises(rank: int) -> None:
    if rank == 1:
        raise KeyError("the reason")
    dist.barrier()  # in which rank 0 would wait for ever


def one_is_stuck(rank: int) -> None:
    if rank == 0:
        time.sleep(600)


def one_dies(rank: int) -> str:
    if rank == 1:
        die()
    return "alive"


def test_results_come_by_rank_from_processes_of_one_thread() -> None:
    assert run_ranks(summed, 2, torch.ones(2)) == [(0, 6.0, 1), (1, 6.0, 1)]


def test_what_a_rank_raises_is_told_and_the_others_are_ended() -> None:
    with pytest.raises(RanksFailed, match=r"(?s)rank 0 of 2: did not end.*rank 1 of 2: .*KeyError: 'the reason'"):
        run_ranks(one_raises, 2)
    assert not multiprocessing.active_children()


def test_a_rank_that_hangs_is_ended_at_the_limit() -> None:
    with pytest.raises(RanksFailed, match="rank 0 of 2: did not end within 8 s"):
        run_ranks(one_is_stuck, 2, limit_s=8)
    assert not multiprocessing.active_children()


def test_a_death_is_a_failure_unless_it_is_allowed() -> None:
    with pytest.raises(RanksFailed, match="rank 1 of 2: died with exit code -9"):
        run_ranks(one_dies, 2, join=False)
    assert run_ranks(one_dies, 2, join=False, deaths=True) == ["alive", Died(-9)]


def test_a_function_within_a_function_is_refused() -> None:
    with pytest.raises(ValueError, match="top level"):
        run_ranks(lambda rank: rank, 1)
