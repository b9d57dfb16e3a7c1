"""Run a function on several ranks of this machine, each a process of its own, and get back what each returns.

    def both(rank: int, whole: torch.Tensor) -> float: ...     # at the top level of a module
    results = run_ranks(both, 2, whole)

The parent holds the rendezvous, as torchrun's agent does, so that no port can be taken between finding and using it.
Ranks are forked from a server that has imported torch once: each starts in milliseconds.
"""

import importlib.util
import multiprocessing as mp
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, cast

import torch
import torch.distributed as dist

from moesaic.errors import LayoutError

AFTERMATH_S = 3.0  # what the other ranks have to say once one has failed is waited for so long
PRELOAD = ["moesaic.parallel.launch", "moesaic.parallel.engine", "torch.distributed.pipelining"]


class RanksFailed(LayoutError):  # noqa: N818
    """Some ranks raised, died or did not end in time. One line for the first; a note has what every one said."""

    def __init__(self, n: int, said: dict[int, str]) -> None:
        # The one that failed says more than those that waited for it.
        first = min(said, key=lambda rank: (said[rank].startswith("did not end"), _is_lost_partner(said[rank]), rank))
        super().__init__(f"rank {first} of {n}: {said[first].strip().splitlines()[-1]}")
        self.said = said
        """What each rank that failed said, tracebacks whole."""
        self.add_note("\n".join(f"--- rank {rank} of {n}: {said[rank]}" for rank in sorted(said)))


@dataclass(frozen=True)
class Died:
    """The result of a rank that was killed, where that was allowed."""

    exit_code: int


@dataclass(frozen=True)
class _Task:
    """What a rank is told."""

    where: tuple[str, str, str]
    args: bytes
    rank: int
    n: int
    port: int
    limit_s: float
    join: bool
    threads: int


def run_ranks(
    function: Callable[..., Any],
    n: int,
    *args: Any,
    limit_s: float = 120,
    join: bool = True,
    deaths: bool = False,
    threads: int = 1,
) -> list[Any]:
    """Call `function(rank, *args)` in `n` new processes at once; their results by rank.

    `function` stands at the top level of a module; `args` and results must pickle. torchrun's variables are set in
    each process and, with `join`, the default process group is made (gloo). When one rank raises or dies, or after
    `limit_s` seconds, all are killed and RanksFailed (a LayoutError) says what each did; with `deaths` a rank that
    dies of a signal gives `Died` and the others go on. Ranks end with this process, however that ends.
    """
    # Its port is the system's choice and stays ours: torch's env:// makes every rank a client of it.
    store = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=limit_s)
    )
    where, packed = _where(function), pickle.dumps(args)
    pipes: list[Connection] = []
    processes: list[BaseProcess] = []
    results: dict[int, Any] = {}
    try:
        for rank in range(n):
            pipe, process = _start(_Task(where, packed, rank, n, store.port, limit_s, join, threads))
            pipes.append(pipe)
            processes.append(process)
        wrong = _collect(pipes, processes, limit_s, deaths, results)
        if wrong:
            raise RanksFailed(n, wrong)
        return [results[rank] for rank in range(n)]
    finally:
        for pipe in pipes:
            with suppress(OSError):
                pipe.send_bytes(b"go")  # all have their results: nobody needs anybody any more
        for process in processes:
            if len(results) < n:
                process.kill()
            process.join()
        for pipe in pipes:
            pipe.close()


def _start(task: _Task) -> tuple[Connection, BaseProcess]:
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)  # heard by a server that is not running yet
    ours, theirs = context.Pipe()
    with _environment(OMP_NUM_THREADS="1"):  # of the server: threads of its own would not live in what it forks
        process = context.Process(target=_child, args=(task, theirs), name=f"rank {task.rank}", daemon=True)
        process.start()
    theirs.close()
    return ours, process


def _collect(
    pipes: list[Connection], processes: list[BaseProcess], limit_s: float, deaths: bool, results: dict[int, Any]
) -> dict[int, str]:
    """Put what ranks return into `results`; what went wrong, by rank."""
    n, wrong = len(pipes), dict[int, str]()
    deadline = time.monotonic() + limit_s
    while len(results) + len(wrong) < n and (left := deadline - time.monotonic()) > 0:
        waiting = {id(pipes[r]): r for r in range(n) if r not in results and r not in wrong}
        for pipe in wait([pipes[r] for r in waiting.values()], timeout=left):
            rank = waiting[id(pipe)]
            try:
                good, content = pickle.loads(pipes[rank].recv_bytes())
            except (EOFError, ConnectionError):  # its end of the pipe closed without a word
                processes[rank].join(timeout=10)
                code = processes[rank].exitcode or 0
                good = deaths and code < 0
                content = Died(code) if good else f"died with exit code {code}"
            if good:
                results[rank] = content
            else:
                wrong[rank] = content
        if wrong:
            deadline = min(deadline, time.monotonic() + AFTERMATH_S)
    for rank in set(range(n)) - results.keys() - wrong.keys():
        wrong[rank] = "did not end" + ("" if wrong else f" within {limit_s:g} s")
    return wrong


def _is_lost_partner(said: str) -> bool:
    last = said.strip().splitlines()[-1]
    return "onnection" in last or "imed out" in last or "abort" in last


def _where(function: Callable[..., Any]) -> tuple[str, str, str]:
    """Module, file and name: pytest imports test modules under names that a new process does not know."""
    if "<" in function.__qualname__:
        raise ValueError(f"{function.__qualname__} cannot be called in another process; define it at the top level")
    return function.__module__, function.__code__.co_filename, function.__qualname__


def _find(module: str, file: str, name: str) -> Callable[..., Any]:
    if module not in sys.modules:
        try:
            importlib.import_module(module)
        except ImportError:
            spec = importlib.util.spec_from_file_location(module, file)
            if spec is None or spec.loader is None:
                raise
            sys.modules[module] = found = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(found)
    target: Any = sys.modules[module]
    for part in name.split("."):
        target = getattr(target, part)
    return cast(Callable[..., Any], target)


def _child(task: _Task, pipe: Connection) -> None:
    """A rank's whole life."""
    dismissed = threading.Thread(target=_until_dismissed, args=(pipe,), daemon=True)
    dismissed.start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all: the parent ends the ranks
    torch.set_num_threads(task.threads)
    os.environ.update(
        RANK=str(task.rank),
        LOCAL_RANK=str(task.rank),
        WORLD_SIZE=str(task.n),
        LOCAL_WORLD_SIZE=str(task.n),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(task.port),
        TORCHELASTIC_USE_AGENT_STORE="True",
        TORCHELASTIC_RESTART_COUNT="0",
        OMP_NUM_THREADS=str(task.threads),
    )
    try:
        if task.join:
            dist.init_process_group("gloo", timeout=timedelta(seconds=task.limit_s))
        answer = pickle.dumps((True, _find(*task.where)(task.rank, *pickle.loads(task.args))))
    except BaseException:
        answer = pickle.dumps((False, traceback.format_exc()))
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(OSError):
        pipe.send_bytes(answer)
        dismissed.join()  # until all have answered: a rank that leaves early breaks the collectives of the others


def _until_dismissed(pipe: Connection) -> None:
    """End this process on the parent's word, or when the parent is gone.

    Without ceremony: gloo's threads sometimes outlive the group and abort an interpreter that ends in the ordinary
    way.
    """
    with suppress(OSError, EOFError):
        pipe.poll(None)
    os._exit(0)


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
