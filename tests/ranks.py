"""Run a function on several gloo ranks, each a process of one thread, and get back what each returns.

    def both(rank: int, whole: torch.Tensor) -> float: ...     # in any test module, at its top level
    results = run_ranks(both, 2, whole)

The parent holds the rendezvous, as torchrun's agent does, so that no port can be taken between finding and using it.
"""

import importlib
import importlib.util
import multiprocessing as mp
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch.distributed as dist

AFTERMATH_S = 3.0  # what the other ranks have to say once one has failed is waited for so long


class RanksFailed(AssertionError):  # noqa: N818
    """Some ranks raised, died or did not end in time; the message has the traceback of each."""


@dataclass(frozen=True)
class Died:
    """The result of a rank that was killed, where that was allowed."""

    exit_code: int


def run_ranks(
    function: Callable[..., Any],
    n: int,
    *args: Any,
    limit_s: float = 120,
    join: bool = True,
    deaths: bool = False,
) -> list[Any]:
    """Call `function(rank, *args)` in `n` new processes at once; their results by rank.

    `function` stands at the top level of a module; `args` and results must pickle. torchrun's variables are set in
    each process and, with `join`, the default process group is made (gloo). When one rank raises or dies, or after
    `limit_s` seconds, all are killed and RanksFailed says what each did; with `deaths` a rank that dies of a signal
    gives `Died` and the others go on.
    """
    spawn = mp.get_context("spawn")
    # Its port is the system's choice and stays ours: torch's env:// makes every rank a client of it.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=limit_s))
    pipes, processes = [], []
    with _environment(OMP_NUM_THREADS="1"):
        for rank in range(n):
            ours, theirs = spawn.Pipe()
            target = (_where(function), rank, n, store.port, limit_s, join, theirs, pickle.dumps(args))
            process = spawn.Process(target=_child, args=target, name=f"rank {rank}", daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
    results: dict[int, Any] = {}
    wrong: dict[int, str] = {}
    deadline = time.monotonic() + limit_s
    try:
        while len(results) + len(wrong) < n and (left := deadline - time.monotonic()) > 0:
            open_ = {pipes[r]: r for r in range(n) if r not in results and r not in wrong}
            for pipe in wait(list(open_), timeout=left):
                rank = open_[pipe]  # type: ignore[index]
                try:
                    good, content = pickle.loads(pipe.recv_bytes())  # type: ignore[union-attr]
                except EOFError:  # its end of the pipe closed without a word
                    processes[rank].join(timeout=10)
                    code = processes[rank].exitcode
                    good, content = (deaths and code is not None and code < 0), f"died with exit code {code}"
                    content = Died(code or 0) if good else content
                (results if good else wrong)[rank] = content
            if wrong:
                deadline = min(deadline, time.monotonic() + AFTERMATH_S)
        for rank in set(range(n)) - results.keys() - wrong.keys():
            wrong[rank] = "did not end" + ("" if wrong else f" within {limit_s:g} s")
        if wrong:
            raise RanksFailed("\n".join(f"--- rank {rank} of {n}: {wrong[rank]}" for rank in sorted(wrong)))
        return [results[rank] for rank in range(n)]
    finally:
        for pipe in pipes:
            with suppress(OSError):
                pipe.send_bytes(b"go")  # all have their results: nobody needs anybody any more
        for process in processes:
            if wrong or len(results) < n:
                process.kill()
            process.join()
        for pipe in pipes:
            pipe.close()


def die() -> None:
    """End this process as `kill -9` would."""
    os.kill(os.getpid(), signal.SIGKILL)


def _where(function: Callable[..., Any]) -> tuple[str, str, str]:
    """Module, file and name: pytest imports test modules under names that a new process does not know."""
    if "<" in function.__qualname__:
        raise ValueError(f"{function.__qualname__} cannot be called in another process; define it at the top level")
    return function.__module__, function.__code__.co_filename, function.__qualname__


def _find(module: str, file: str, name: str) -> Callable[..., Any]:
    if module not in sys.modules:
        spec = importlib.util.spec_from_file_location(module, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[module] = found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
    target: Any = sys.modules[module]
    for part in name.split("."):
        target = getattr(target, part)
    return target  # type: ignore[no-any-return]


def _child(
    where: tuple[str, str, str],
    rank: int,
    n: int,
    port: int,
    limit_s: float,
    join: bool,
    pipe: Connection,
    args: bytes,
) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(n),
        LOCAL_WORLD_SIZE=str(n),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
        TORCHELASTIC_RESTART_COUNT="0",
    )
    try:
        if join:
            dist.init_process_group("gloo", timeout=timedelta(seconds=limit_s))
        answer = pickle.dumps((True, _find(*where)(rank, *pickle.loads(args))))
    except BaseException:
        answer = pickle.dumps((False, traceback.format_exc()))
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(OSError):
        pipe.send_bytes(answer)
        pipe.recv_bytes()  # until all have answered: a rank that leaves early breaks the collectives of the others
    os._exit(0)  # gloo's threads sometimes outlive the group and abort an interpreter that ends in the ordinary way


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
