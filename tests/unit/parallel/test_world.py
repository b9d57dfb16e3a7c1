"""Ranks meet, agree, share results and errors; who does not come is named, and nobody waits for ever."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from moesaic.errors import DataError, LayoutError
from moesaic.parallel.last_words import reason
from moesaic.parallel.private import shared_store
from moesaic.parallel.world import World
from ranks import run_ranks

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def port() -> Iterator[int]:
    """A free port, kept from others until it is used."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


JOIN = """
import sys
from moesaic.errors import LayoutError
from moesaic.parallel.world import World
try:
    World.join(meeting_s=float(sys.argv[1]))
except LayoutError as error:
    sys.exit(f"{error} {error.everywhere}")
"""


def start(rank: int, size: int, port: int, meeting_s: float) -> "subprocess.Popen[str]":
    """One rank, started by hand."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    env = os.environ | {"OMP_NUM_THREADS": "1"} | {key: str(value) for key, value in told.items()}
    command = [sys.executable, "-c", JOIN, str(meeting_s)]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def test_alone_there_is_no_group() -> None:
    world = World.join()
    assert (world.rank, world.size, world.is_first) == (0, 1, True)
    assert world.on_first(lambda: 3) == world.on_each(lambda: 3) == 3
    world.agree("anything", "x")
    world.barrier()
    world.leave()
    assert not dist.is_initialized()


@pytest.mark.parametrize("present", [0, 1])
def test_a_rank_that_never_comes(present: int, port: int) -> None:
    process = start(present, 2, port, meeting_s=1.0)
    _, err = process.communicate(timeout=90)
    last = err.strip().splitlines()[-1]
    assert process.returncode == 1
    assert last.startswith(f"rank {present} of 2 did not meet the others at 127.0.0.1:{port}: ")
    assert last.endswith("start all ranks, on a port that is free False")  # told by this rank: there is no other
    assert "Traceback" not in err


def missing(rank: int, meeting_s: float) -> tuple[str, float]:
    """What a rank hears, where the store outlives the ranks as torchrun's does, and rank 2 of 3 does not come."""
    if rank == 2:
        return "", 0.0
    began = time.monotonic()
    with pytest.raises(LayoutError) as caught:
        World.join(meeting_s=meeting_s)
    return str(caught.value), time.monotonic() - began


def test_who_does_not_come_is_named() -> None:
    first, second, _ = run_ranks(missing, 3, 1.0, join=False)
    for rank, (said, seconds) in enumerate((first, second)):
        assert said.startswith(f"rank {rank} of 3 did not meet the others at 127.0.0.1:")
        assert "rank 2 did not come within 1 s" in said
        assert seconds < 60


def test_a_port_in_use(port: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        process = start(0, 2, taken, meeting_s=20.0)
        _, err = process.communicate(timeout=90)
    assert process.returncode == 1
    assert f"127.0.0.1:{taken}: the port is in use; start all ranks, on a port that is free" in err


class UnsendableError(Exception):
    """Pickle makes exceptions anew from one argument."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def together(rank: int) -> dict[str, object]:
    """Everything that ranks exchange."""
    world = World.join()
    found: dict[str, object] = {"value": world.on_first(lambda: [rank, "first"])}
    found["own"] = world.on_each(lambda: lambda: rank)()  # a function, which cannot be sent
    found["any"] = world.any(rank == 1, False)
    world.agree("the recipe", "same")

    def fails(ranks: tuple[int, ...], error: Exception) -> int:
        if rank in ranks:
            raise error
        return rank

    for name, call in {
        "first": lambda: world.on_first(lambda: fails((0,), DataError("no data"))),
        "one": lambda: world.on_each(lambda: fails((1,), DataError("no data"))),
        "all": lambda: world.on_each(lambda: fails((0, 1), OSError(28, "full"))),
        "bug": lambda: world.on_first(lambda: fails((0,), ZeroDivisionError("a bug"))),
        "bug of one": lambda: world.on_each(lambda: fails((1,), ZeroDivisionError("a bug"))),
        "not to be sent": lambda: world.on_first(lambda: fails((0,), UnsendableError("a", "bug"))),
        "agree": lambda: world.agree("the recipe", f"of rank {rank}"),
    }.items():
        with pytest.raises((DataError, OSError, LayoutError, ZeroDivisionError, RuntimeError)) as caught:
            call()
        found[name] = f"{type(caught.value).__name__}: {caught.value}"
    store = shared_store()
    store.set(f"here/{rank}", "x")
    store.wait(["here/0", "here/1"])
    return found


def test_results_and_errors_are_those_of_all() -> None:
    zero, one = run_ranks(together, 2, join=False)
    assert (zero.pop("own"), one.pop("own")) == (0, 1)
    assert zero == one
    assert zero == {
        "value": [0, "first"],
        "any": [True, False],
        "first": "DataError: no data",
        "one": "DataError: rank 1: no data",
        "bug": "ZeroDivisionError: a bug",
        "bug of one": "ZeroDivisionError: a bug",
        "not to be sent": "RuntimeError: UnsendableError: a bug",
        "all": "OSError: [Errno 28] full",
        "agree": "LayoutError: ranks disagree on the recipe: rank 0 has of rank 0, rank 1 has of rank 1; "
        "start all of them with the same files and options",
    }


def patient(rank: int, seconds: float) -> str:
    """The first rank works longer than a collective may take."""
    world = World.join(limit_s=0.5)

    def work() -> str:
        time.sleep(seconds)
        return "done"

    found = world.on_first(work)
    if rank == 0:
        time.sleep(seconds)
    world.barrier()
    return found


def test_work_of_the_first_rank_is_waited_for() -> None:
    assert run_ranks(patient, 2, 2.0, join=False) == ["done", "done"]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (
            "[/a/gloo/pair.cc:553] Connection closed by peer [::1]:2. This is typically",
            "Connection closed by peer [::1]:2",
        ),
        ("The server socket has failed to listen. port: 1, EADDRINUSE", "the port is in use"),
        ("Timed out.\nmore", "Timed out"),
    ],
)
def test_reasons_are_one_sentence(text: str, plain: str) -> None:
    assert reason(RuntimeError(text)) == plain
