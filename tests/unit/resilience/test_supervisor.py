"""A run under the supervisor ends as it would have undisturbed, or with one clear message, and leaves no process."""

import contextlib
import math
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import toy

from moesaic.errors import MoesaicError, RecipeError
from moesaic.resilience.beats import alive, read_beats
from moesaic.resilience.faults import Fault
from moesaic.resilience.incidents import incidents
from moesaic.resilience.limits import Limits
from moesaic.resilience.supervisor import Supervisor, newest_committed

STEPS = 12
LIMIT_S = 100.0
QUICK = Limits(first_wait=0.01, grace=0.5)

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, float]]:
    run = tmp_path_factory.mktemp("toy") / "run"
    assert supervisor(run, []).go(toy.train, STEPS, world=2).kind == "finished"
    return toy.losses(run)


@pytest.fixture(autouse=True)
def _no_rank_is_left() -> object:
    yield
    assert not multiprocessing.active_children()


def supervisor(run: Path, said: list[str], limits: Limits = QUICK, port: int = 0) -> Supervisor:
    return Supervisor(run, limits, say=said.append, threads=1, show=False, port=port)


def gone(run: Path) -> bool:
    return not any(alive(beat.pid) for beat in read_beats(run).values())


@pytest.mark.parametrize("kind", ["kill_forward", "kill_backward", "kill_optimizer"])
def test_a_killed_rank_costs_time_and_nothing_else(
    kind: str, tmp_path: Path, undisturbed: list[tuple[int, float]]
) -> None:
    said: list[str] = []
    faults = (Fault(kind, 5, 1),)  # type: ignore[arg-type]
    assert supervisor(tmp_path, said).go(toy.train, STEPS, faults, world=2).kind == "finished"
    assert toy.losses(tmp_path) == undisturbed
    assert len(said) == 2, said
    assert said[0].startswith("rank 1 ")
    assert "in step 5" in said[0]
    assert said[1].startswith("went on with step 4, ")
    (failure,) = incidents(tmp_path, "failure")
    assert (failure["rank"], failure["step"]) == (1, 5)
    (recovery,) = incidents(tmp_path, "recovery")
    assert recovery["step"] == 4
    assert recovery["seconds"] > 0


def test_a_rank_that_hangs_is_named_and_ended(tmp_path: Path, undisturbed: list[tuple[int, float]]) -> None:
    said: list[str] = []
    faults = (Fault("hang", 5, 1),)
    limits = Limits(hang=1.5, grace=0.5)
    assert supervisor(tmp_path, said, limits).go(toy.train, STEPS, faults, world=2).kind == "finished"
    assert toy.losses(tmp_path) == undisturbed
    assert "no sign of life" in said[0]
    assert "_hang" in said[0]  # where it hangs
    assert "all_reduce" in said[0]  # and where the other one waits for it
    (hang,) = incidents(tmp_path, "hang")
    assert hang["ranks"] == [1]


def test_what_the_user_must_mend_is_not_tried_again(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(RecipeError, match="this recipe is wrong; change it"):
        supervisor(tmp_path, said).go(toy.train, STEPS, (), 0.0, "refused", world=2)
    assert not said
    assert gone(tmp_path)


def test_a_failure_that_comes_back_uses_up_the_restarts(tmp_path: Path) -> None:
    """It dies in step 5 each time: the checkpoint of step 3 is progress once, then no more."""
    said: list[str] = []
    limits = Limits(restarts=2, first_wait=0.01, grace=0.5)
    with pytest.raises(MoesaicError, match=r"gave up after 2 .* rank 1 raised ValueError: a bug that comes back"):
        supervisor(tmp_path, said, limits).go(toy.train, STEPS, (), 0.0, "bug", world=2)
    assert len(incidents(tmp_path, "failure")) == 3
    assert newest_committed(tmp_path) == 3
    assert gone(tmp_path)


def test_a_rank_dead_before_ranks_have_met_is_one_clear_error(tmp_path: Path) -> None:
    said: list[str] = []
    limits = Limits(restarts=1, first_wait=0.01, grace=0.5)
    with pytest.raises(MoesaicError, match=r"gave up after 1 .* rank 1 .*before its first step"):
        supervisor(tmp_path, said, limits).go(toy.train, STEPS, (), 0.0, "no rendezvous", world=2)
    assert gone(tmp_path)


def test_the_number_of_ranks_may_change_on_the_way(tmp_path: Path) -> None:
    said: list[str] = []
    assert supervisor(tmp_path, said).go(toy.train, STEPS, (), 0.0, "grow", world=1).kind == "finished"
    assert said == ["the run goes on with 2 ranks instead of 1"]
    assert [step for step, _ in toy.losses(tmp_path)] == list(range(1, STEPS + 1))
    assert set(read_beats(tmp_path)) == {0, 1}


def test_a_port_in_use_is_refused_at_once(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(MoesaicError, match=f"port {port} of 127.0.0.1: .*give another"):
            supervisor(tmp_path, [], port=port)


def test_the_handlers_of_signals_are_ours_again(tmp_path: Path) -> None:
    def ours(*_: object) -> None: ...

    before = signal.signal(signal.SIGINT, ours)
    try:
        assert supervisor(tmp_path, []).go(toy.train, 2, world=2).kind == "finished"
        assert signal.getsignal(signal.SIGINT) is ours
    finally:
        signal.signal(signal.SIGINT, before)


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from pathlib import Path
import toy
from moesaic.resilience.supervisor import Supervisor
if __name__ == "__main__":
    supervisor = Supervisor(Path(sys.argv[1]), say=print, threads=1, show=False)
    print(supervisor.go(toy.train, 10_000, (), 0.02, world=2).kind)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_all_ranks_save_and_end(number: signal.Signals, tmp_path: Path) -> None:
    with started(tmp_path) as process:
        wait_until(lambda: any(beat.steps > 5 for beat in read_beats(tmp_path).values()))
        process.send_signal(number)
        output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, output
    assert output.split() == ["stopped", "by", number.name, "stopped"]
    assert [beat.end for beat in read_beats(tmp_path).values()] == ["stopped", "stopped"]
    steps = [step for step, _ in toy.losses(tmp_path)]
    assert newest_committed(tmp_path) == steps[-1]
    assert gone(tmp_path)


def test_ranks_do_not_outlive_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    with started(tmp_path) as process:
        wait_until(lambda: any(beat.steps > 5 for beat in read_beats(tmp_path).values()))
        process.kill()
        process.communicate(timeout=LIMIT_S)
    wait_until(lambda: gone(tmp_path))
    assert newest_committed(tmp_path) == toy.losses(tmp_path)[-1][0]  # they took the time to save


@contextlib.contextmanager
def started(run: Path) -> "Iterator[subprocess.Popen[str]]":
    """A supervisor in a process of its own; whatever the test does, neither it nor its ranks stay."""
    file = run / "script.py"
    file.write_text(SCRIPT.format(folder=str(Path(__file__).parent)), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(file), str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
            for beat in read_beats(run).values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(beat.pid, signal.SIGKILL)


def wait_until(holds: Callable[[], bool], limit: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_slow_rank_is_named_with_the_place_where_it_is_slow(
    tmp_path: Path, undisturbed: list[tuple[int, float]]
) -> None:
    said: list[str] = []
    faults = (Fault("slow", 3, 1),)
    assert supervisor(tmp_path, said).go(toy.train, STEPS, faults, 0.06, world=2).kind == "finished"
    assert toy.losses(tmp_path) == undisturbed
    (slow,) = incidents(tmp_path, "slow")
    assert slow["rank"] == 1
    assert "_sleep_in_forward" in slow["where"]
    assert said[0].startswith("rank 1 is slow: 0.")


def test_a_gradient_that_is_not_finite_is_traced_to_rank_and_tensor(
    tmp_path: Path, undisturbed: list[tuple[int, float]]
) -> None:
    """Rank 1 alone sees it before the reduction; afterwards it is everywhere. The step changes no weight."""
    said: list[str] = []
    faults = (Fault("nan", 5, 1),)
    assert supervisor(tmp_path, said).go(toy.train, STEPS, faults, 0.06, world=2).kind == "finished"
    assert toy.losses(tmp_path)[:5] == undisturbed[:5]
    assert all(math.isfinite(loss) for _, loss in toy.losses(tmp_path))
    assert said == ["step 5: the gradient is not finite, first in layers.1.weight on rank 1"]


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, undisturbed: list[tuple[int, float]]) -> None:
    said: list[str] = []
    assert supervisor(tmp_path, said).go(toy.train, STEPS, (Fault("corrupt", 6),), world=2).kind == "finished"
    assert toy.losses(tmp_path) == undisturbed
    assert said[1].startswith("went on with step 4, ")  # not 7


def test_a_full_disk_costs_one_checkpoint(tmp_path: Path, undisturbed: list[tuple[int, float]]) -> None:
    said: list[str] = []
    assert supervisor(tmp_path, said).go(toy.train, STEPS, (Fault("full_disk", 6, 1),), world=2).kind == "finished"
    assert toy.losses(tmp_path) == undisturbed
    assert not said
    assert newest_committed(tmp_path) == 9
    assert not (tmp_path / "checkpoints" / "step_00000006").exists()
