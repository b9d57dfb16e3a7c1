"""Ranks started from here: results by rank, errors with the rank, no hang, nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from moesaic.errors import LayoutError
from moesaic.parallel.meshes import Meshes
from moesaic.parallel.world import World
from moesaic.recipe import Layout
from ranks import Died, RanksFailed, die, run_ranks


def who(rank: int, word: str) -> tuple[str, int, int, int, str]:
    total = torch.tensor(rank)
    dist.all_reduce(total)
    return f"{word}{rank}", int(total), torch.get_num_threads(), os.getpid(), os.environ["RANK"]


def test_results_come_by_rank_from_processes_of_one_thread() -> None:
    results = run_ranks(who, 3, "rank ")
    assert [r[0] for r in results] == ["rank 0", "rank 1", "rank 2"]
    assert [r[1] for r in results] == [3, 3, 3]
    assert [r[2] for r in results] == [1, 1, 1]
    assert [r[4] for r in results] == ["0", "1", "2"]
    pids = {r[3] for r in results}
    assert len(pids) == 3
    assert not any(_alive(pid) for pid in pids)
    assert "RANK" not in os.environ


def one_raises(rank: int) -> None:
    if rank == 1:
        raise ValueError("a wrong number")
    dist.barrier()


def test_an_error_names_the_rank_that_made_it() -> None:
    with pytest.raises(RanksFailed, match="rank 1 of 2: ValueError: a wrong number") as caught:
        run_ranks(one_raises, 2)
    assert isinstance(caught.value, LayoutError)
    assert "Traceback" in caught.value.said[1]


def one_dies(rank: int) -> int:
    if rank == 1:
        die()
    time.sleep(0.2)
    return rank


def test_a_death_is_an_error_or_a_result() -> None:
    with pytest.raises(RanksFailed, match=f"rank 1 of 2: died with exit code {-signal.SIGKILL}"):
        run_ranks(one_dies, 2, join=False)
    assert run_ranks(one_dies, 2, join=False, deaths=True) == [0, Died(-signal.SIGKILL)]


def sleeps(rank: int, folder: str) -> None:
    (Path(folder) / str(rank)).write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(600)


def test_what_does_not_end_is_ended(tmp_path: Path) -> None:
    with pytest.raises(RanksFailed, match="rank 0 of 2: did not end within 4 s"):
        run_ranks(sleeps, 2, str(tmp_path), limit_s=4, join=False)
    pids = [int(file.read_text(encoding="utf-8")) for file in tmp_path.iterdir()]
    assert len(pids) == 2
    assert not any(_alive(pid) for pid in pids)


PARENT = """
import sys
sys.path[:0] = {path!r}
if __name__ == "__main__":
    import test_launch
    test_launch.run_ranks(test_launch.sleeps, 2, {folder!r}, limit_s=300, join=False)
"""


def test_ranks_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    path = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    script, seen = tmp_path / "parent.py", tmp_path / "seen"
    seen.mkdir()
    script.write_text(PARENT.format(path=path, folder=str(seen)), encoding="utf-8")
    parent = subprocess.Popen([sys.executable, str(script)])
    _until(lambda: len(list(seen.iterdir())) == 2 and all(f.read_text() for f in seen.iterdir()))
    pids = [int(file.read_text(encoding="utf-8")) for file in seen.iterdir()]
    parent.kill()
    parent.wait()
    _until(lambda: not any(_alive(pid) for pid in pids))
    assert len(set(pids)) == 2


def test_only_a_function_of_a_module_can_be_run() -> None:
    with pytest.raises(ValueError, match="at the top level"):
        run_ranks(lambda rank: rank, 2)


def disagrees(rank: int) -> str:
    world = World.join()
    world.agree("the recipe", "same")
    try:
        world.agree("the recipe", "a" if rank < 2 else "b")
    except LayoutError as error:
        return str(error)
    return ""


def test_ranks_that_differ_all_say_so() -> None:
    for said in run_ranks(disagrees, 3):
        assert said.startswith("ranks disagree on the recipe: rank 0 has a, rank 2 has b")


def wrong_size(rank: int) -> str:
    try:
        Meshes(Layout(tp=4), World.join())
    except LayoutError as error:
        return str(error)
    return ""


def test_a_wrong_number_of_processes_is_an_error_on_each() -> None:
    for said in run_ranks(wrong_size, 2):
        assert "the layout is for 4 processes" in said
        assert "2 are running; start 4" in said
    with pytest.raises(LayoutError, match="1 are running; start 2"):
        Meshes(Layout(dp=2), World())


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _until(true: object, limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)
