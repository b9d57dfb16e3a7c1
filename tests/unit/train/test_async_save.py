"""A save in the background stores the state of its moment, whatever training, the disk or the user do meanwhile."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from moesaic.train import checkpoint
from moesaic.train.checkpoint import CheckpointStore, problem_of
from moesaic.train.host_copy import HostCopy, Pending

LIMIT_S = 60  # of anything that is waited for; reached only by a bug


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_WAITS_S", (0.0,))


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """No tensor is written before this is set."""
    opened, write = threading.Event(), checkpoint.write_tensors

    def write_when_open(*args: Any) -> None:
        assert opened.wait(LIMIT_S)
        write(*args)

    monkeypatch.setattr(checkpoint, "write_tensors", write_when_open)
    return opened


def filled(value: float) -> dict[str, Any]:
    return {"model": {"w": torch.full((64, 32), value)}, "optimizer": {"w": {"step": torch.tensor(value)}}}


def value_in(folder: Path, step: int) -> float:
    state = filled(-1.0)
    CheckpointStore(folder, 9, 0).load(folder / f"step_{step:08d}", state)
    assert (state["model"]["w"] == state["optimizer"]["w"]["step"]).all()
    return float(state["optimizer"]["w"]["step"])


def change(state: dict[str, Any], value: float) -> None:
    state["model"]["w"].fill_(value)
    state["optimizer"]["w"]["step"].fill_(value)


def test_what_is_stored_is_the_state_at_the_call(tmp_path: Path, gate: threading.Event) -> None:
    store = CheckpointStore(tmp_path, 9, 0)
    state = filled(1.0)
    assert store.save(1, state, {})
    change(state, 2.0)
    assert not list(tmp_path.glob("step_*1/COMMITTED"))
    gate.set()
    assert store.wait()
    assert value_in(tmp_path, 1) == 1.0


def test_an_overlapped_copy_is_done_when_wait_copied_returns(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, copy = threading.Event(), Pending.copy

    def copy_late(self: Pending) -> None:
        assert begun.wait(LIMIT_S)
        copy(self)

    monkeypatch.setattr(Pending, "copy", copy_late)
    phases: list[tuple[int, str]] = []
    store = CheckpointStore(tmp_path, 9, 0, on_phase=lambda *phase: phases.append(phase))
    state = filled(1.0)
    store.save(1, state, {}, overlap=True)
    assert phases == []
    threading.Timer(0.1, begun.set).start()
    store.wait_copied()
    assert phases == [(1, "copied")]
    change(state, 2.0)
    gate.set()
    assert store.wait()
    assert value_in(tmp_path, 1) == 1.0


def test_the_next_save_waits_for_the_one_before_it(tmp_path: Path, gate: threading.Event) -> None:
    phases: list[tuple[int, str]] = []
    store = CheckpointStore(tmp_path, 9, 0, on_phase=lambda *phase: phases.append(phase))
    state = filled(1.0)
    store.save(1, state, {})
    change(state, 2.0)
    threading.Timer(0.1, gate.set).start()
    store.save(2, state, {})
    assert phases[:4] == [(1, "copied"), (1, "written"), (1, "committed"), (2, "copied")]
    change(state, 3.0)
    assert store.wait()
    assert phases[4:] == [(2, "written"), (2, "committed")]
    assert [value_in(tmp_path, 1), value_in(tmp_path, 2)] == [1.0, 2.0]


def test_each_save_is_reported_once_with_its_bytes(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 9, 0)
    store.save(1, filled(1.0), {})
    store.save(2, filled(2.0), {}, background=False)
    first, second = store.reports()
    assert (first.step, second.step, first.committed, second.committed) == (1, 2, True, True)
    assert first.bytes == sum(p.stat().st_size for p in (tmp_path / "step_00000001").iterdir())
    assert 0 < first.blocked_seconds <= first.seconds
    assert second.blocked_seconds == second.seconds
    assert store.reports() == []


def test_a_full_disk_only_warns_and_the_next_save_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = checkpoint.write_tensors

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    warnings: list[str] = []
    store = CheckpointStore(tmp_path, 9, 1, warnings.append)
    monkeypatch.setattr(checkpoint, "write_tensors", full)
    assert store.save(1, filled(1.0), {})
    assert not store.wait()
    assert [("No space left" in w, "training goes on" in w) for w in warnings] == [(True, False), (True, True)]
    (report,) = store.reports()
    assert (report.committed, report.bytes) == (False, 0)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(checkpoint, "write_tensors", write)
    assert store.save(2, filled(2.0), {})
    assert store.wait()
    assert value_in(tmp_path, 2) == 2.0


def test_a_bug_in_the_background_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    def wrong(step: int, phase: str) -> None:
        if phase == "written":
            raise KeyError("a bug")

    warnings: list[str] = []
    store = CheckpointStore(tmp_path, 9, 3, warnings.append, on_phase=wrong)
    store.save(1, filled(1.0), {})
    with pytest.raises(KeyError, match="a bug"):
        store.wait()
    assert not warnings
    assert store.newest_good() is None
    assert store.wait() is False


def test_reading_waits_for_the_save_under_way(tmp_path: Path, gate: threading.Event) -> None:
    store = CheckpointStore(tmp_path, 9, 0)
    store.save(1, filled(1.0), {"step": 1})
    threading.Timer(0.1, gate.set).start()
    path = store.newest_good()
    assert path == tmp_path / "step_00000001"
    assert store.load(path, filled(0.0)) == {"step": 1}


def test_buffers_are_used_again_until_a_shape_changes() -> None:
    copy = HostCopy()
    weights = {"a": torch.zeros(8, 4), "b": torch.zeros(3)}
    before = {n: p.host.data_ptr() for n, p in copy.begin(weights).pieces.items()}
    alone = copy.begin({"a": weights["a"]}).pieces  # as between stages, where only weights are saved
    assert list(alone) == ["a"]
    assert {n: p.host.data_ptr() for n, p in copy.begin(weights).pieces.items()} == before
    longer = copy.begin({"a": torch.zeros(9, 4), "b": weights["b"]}).pieces
    assert longer["a"].host.shape == (9, 4)
    assert longer["b"].host.data_ptr() == before["b"]


INTERRUPTED = """
import signal, sys, threading, time
from pathlib import Path
import torch
from moesaic.train import checkpoint
signal.signal(signal.SIGINT, signal.default_int_handler)  # a process started in the background has it ignored
write, begun, main = checkpoint.write_tensors, threading.Event(), threading.main_thread().ident
def slowly(*args):
    begun.set()
    time.sleep(0.3)
    write(*args)
checkpoint.write_tensors = slowly
store = checkpoint.CheckpointStore(Path(sys.argv[1]), 9, 0)
interrupt = threading.Thread(target=lambda: begun.wait() and signal.pthread_kill(main, signal.SIGINT))
interrupt.start()
store.save(1, {"w": torch.ones(1000)}, {}, background=sys.argv[2] == "background")
interrupt.join()
store.wait()
"""


@pytest.mark.parametrize("how", ["background", "waited for"])
def test_ctrl_c_ends_the_process_after_the_save_under_way(tmp_path: Path, how: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path), how]
    done = subprocess.run(command, timeout=LIMIT_S, capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in done.stderr
    assert problem_of(tmp_path / "step_00000001") is None
