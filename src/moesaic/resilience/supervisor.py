"""Keeping a run alive on this machine: start its ranks, and start them again after a failure.

Ranks are started by torch's elastic launcher (`torch.distributed.launcher.api`) with a function as entry point and
`forkserver` as start method. The fork server is the warm spare: one process that has imported everything and computed
nothing, from which the ranks of a new start are forked in milliseconds.

The launcher itself restarts nothing (`max_restarts = 0`): it cannot tell a failure that passes from one that a restart
repeats, nor change the number of ranks. Both are decided here.
"""

import contextlib
import logging
import multiprocessing
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from moesaic import errors
from moesaic.errors import MoesaicError
from moesaic.resilience.beats import clear_beats
from moesaic.resilience.incidents import report
from moesaic.resilience.limits import Budget, Limits
from moesaic.resilience.outcome import Outcome
from moesaic.resilience.rank import Start, Worker, run_rank
from moesaic.resilience.verdict import Verdict, judge
from moesaic.resilience.watchdog import Watchdog

PRELOAD = ("torch", "torch.distributed", "moesaic.train.run", "moesaic.resilience.rank")
MONITOR_S = 0.05  # between two looks of the launcher at its processes
LOGS_KEPT = 8  # starts
# Seconds between signs of life to other launchers, which there are none of. The thread that gives them talks to a
# store in C++, and an interpreter that ends meanwhile aborts (std::terminate) instead of returning its status.
ALONE_S = 10**6
_LAUNCHER_LOGS = ("torch.distributed.elastic", "torch.distributed.launcher", "torch.multiprocessing")
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Failure:
    verdict: Verdict
    died: float


class Supervisor:
    """Runs `worker` on ranks of this machine until it returns, is stopped, or cannot be mended by a restart."""

    def __init__(
        self,
        run: Path,
        limits: Limits | None = None,
        *,
        say: Callable[[str], None] = _LOGGER.warning,
        port: int = 0,
        threads: int | None = None,
        show: bool = True,
        preload: Sequence[str] = PRELOAD,
    ) -> None:
        """`run`: the run folder. `port`: where ranks meet on 127.0.0.1, 0 for a free one. `threads` of each rank:

        by default the cores shared out. `show`: rank 0 writes to our stdout, the others into `RUN/logs`. `preload`:
        modules of the warm process. Raises MoesaicError when the port is taken.
        """
        self.run, self.limits, self.say, self.port, self.show = run, limits or Limits(), say, port, show
        self.threads = threads
        self.restarts = 0
        _check_free(port)
        multiprocessing.set_forkserver_preload(list(preload))

    def go(self, worker: Worker, *arguments: Any, world: int) -> Outcome:
        """`worker(rank, *arguments)` on `world` ranks, restarted until it returns; both must survive pickling.

        Returns what rank 0 returned, or `stopped` after SIGTERM or Ctrl-C. Raises MoesaicError when a rank raised one
        (a restart cannot mend it) and when restarts are used up. No rank is left running whatever happens.
        """
        budget = Budget(self.limits)
        self.run.mkdir(parents=True, exist_ok=True)
        number, died = 0, None
        with _signals_restored(), _launcher_logs_into(self.run / "logs"):
            try:
                while True:
                    start = Start(self.run, number, world, self.threads or _threads(world), died)
                    ended = self._start(worker, arguments, start)
                    number, died = number + 1, None
                    if isinstance(ended, _Failure):
                        died = ended.died
                        self._after(ended, budget)
                    elif ended.kind == "again" and ended.world is not None:
                        self.say(f"the run goes on with {ended.world} ranks instead of {world}")
                        world = ended.world
                    else:
                        return ended
            except SignalException as signalled:
                self.say(f"stopped by {signalled.sigval.name}")
                return Outcome("stopped")

    def _start(self, worker: Worker, arguments: tuple[Any, ...], start: Start) -> Outcome | _Failure:
        """One start of all ranks, to its end. Raises SignalException when we are asked to stop."""
        clear_beats(self.run)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=start.world,
            run_id=f"start_{start.number:04}",
            rdzv_backend="c10d",
            rdzv_endpoint=f"127.0.0.1:{self.port}",
            rdzv_configs={"timeout": 60, "join_timeout": 60, "keep_alive_interval": ALONE_S},
            max_restarts=0,
            monitor_interval=MONITOR_S,
            start_method="forkserver",
            local_addr="127.0.0.1",
            logs_specs=self._logs(start),
            shutdown_timeout=int(self.limits.stop),
            signals_to_handle="SIGTERM,SIGINT",
        )
        before = set(multiprocessing.active_children())
        with Watchdog(self.run, start.world, self.limits, self._went_on(start), self.say) as watchdog:
            try:
                returned = elastic_launch(config, run_rank)(worker, start, arguments)
                outcome: Outcome = returned[0]
                return outcome
            except ChildFailedError as error:
                failures = error.failures
            finally:
                _end(set(multiprocessing.active_children()) - before)
        if watchdog.beats and all(beat.end == "stopped" for beat in watchdog.beats.values()):
            return Outcome("stopped")  # somebody asked the ranks themselves
        verdict = judge(watchdog, {rank: f.exitcode for rank, f in failures.items()})
        return _Failure(verdict, verdict.at)

    def _after(self, failure: _Failure, budget: Budget) -> None:
        """Say what happened, wait, and let the next start come; or raise MoesaicError."""
        verdict = failure.verdict
        report(
            self.run, "failure", rank=verdict.rank, step=verdict.step, phase=verdict.phase, cause=verdict.cause,
            died=failure.died,
        )  # fmt: skip
        if verdict.mendable:
            kind = getattr(errors, verdict.error, MoesaicError)
            raise kind(verdict.cause)
        self.say(str(verdict))
        wait = budget.admit(time.time(), newest_committed(self.run))
        if wait is None:
            raise MoesaicError(
                f"gave up after {self.limits.restarts} restart(s) without a new checkpoint; last, {verdict}; "
                f"see {self.run / 'logs'}, then continue with --resume"
            )
        self.restarts += 1
        if wait:
            self.say(f"no checkpoint since the last restart: waiting {wait:.0f} s")
            time.sleep(wait)

    def _went_on(self, start: Start) -> Callable[[int, float], None]:
        def tell(step: int, at: float) -> None:
            if start.died is not None:
                seconds = at - start.died
                report(self.run, "recovery", step=step, seconds=seconds, world=start.world)
                self.say(f"went on with step {step}, {seconds:.1f} s after that")

        return tell

    def _logs(self, start: Start) -> DefaultLogsSpecs:
        folder = self.run / "logs"
        folder.mkdir(exist_ok=True)
        for old in sorted(p for p in folder.glob("start_*"))[: -(LOGS_KEPT - 1)]:
            shutil.rmtree(old, ignore_errors=True)
        redirects = dict.fromkeys(range(start.world), Std.ALL)
        if self.show:
            redirects[0] = Std.ERR
        return DefaultLogsSpecs(log_dir=str(folder), redirects=redirects)


def supervise(
    worker: Worker, *arguments: Any, run: Path, world: int, limits: Limits | None = None, **options: Any
) -> Outcome:
    """`Supervisor(run, limits, **options).go(worker, *arguments, world=world)`."""
    return Supervisor(run, limits, **options).go(worker, *arguments, world=world)


def newest_committed(run: Path) -> int:
    """Step of the newest checkpoint that was completed, -1 without one."""
    steps = [int(p.parent.name[5:13]) for p in run.glob("checkpoints/step_*/COMMITTED") if _STEP.match(p.parent.name)]
    return max(steps, default=-1)


_STEP = re.compile(r"step_\d{8}")


def _threads(world: int) -> int:
    return max(1, (os.cpu_count() or 1) // world)


def _check_free(port: int) -> None:
    """Raises MoesaicError: the launcher would take whoever listens there for its own and wait for a minute."""
    if port:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise MoesaicError(
                    f"port {port} of 127.0.0.1: {error.strerror}; give another, or 0 for a free one"
                ) from error


def _end(processes: set[Any]) -> None:
    """Kill what is left of a start, and wait until it is gone."""
    for process in processes:
        if process.is_alive():
            process.kill()
    for process in processes:
        process.join(10)


@contextlib.contextmanager
def _signals_restored() -> Iterator[None]:
    """The launcher replaces handlers and leaves its own behind."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _launcher_logs_into(folder: Path) -> Iterator[None]:
    """The launcher's own lines go to a file; ours say the same in one line each."""
    folder.mkdir(exist_ok=True)
    handler = logging.FileHandler(folder / "launcher.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in _LAUNCHER_LOGS]
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.propagate = propagate
        handler.close()
