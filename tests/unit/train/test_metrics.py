"""Lines are whole, in order, and no step stands twice; a viewer never ends a run."""

import errno
import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from moesaic.errors import CheckpointError, MoesaicError
from moesaic.train.metrics import MetricsLog, read_metrics
from moesaic.train.sinks import open_sink, scalars


def test_what_is_written_is_read(tmp_path: Path) -> None:
    lines = [
        {"step": 1, "loss": 0.1 + 0.2, "load": [[0.5, 0.5]]},
        {"event": "sample", "step": 1, "reply": "ä\n"},
    ]
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        for line in lines:
            log.write(line)
            assert read_metrics(log.path)[-1] == line
    assert read_metrics(log.path) == lines


def test_every_line_is_json_that_any_reader_takes(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "m") as log:
        log.write({"step": 1, "loss": math.nan, "load": [(1.0, math.inf)]})
    assert json.loads(log.path.read_text(), parse_constant=pytest.fail) == {
        "step": 1,
        "loss": None,
        "load": [[1.0, None]],
    }


def test_a_resume_drops_later_steps_and_the_torn_line(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m")
    for step in (1, 2, 3, 4):
        log.write({"step": step})
    log.write({"event": "evaluation", "at_step": 3})
    with log.path.open("a") as file:
        file.write('{"step": 5, "lo')
    log.truncate_after(2)
    log.write({"step": 3, "again": True})
    assert read_metrics(log.path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_new_run_has_nothing_to_drop(tmp_path: Path) -> None:
    MetricsLog(tmp_path / "m").truncate_after(0)
    assert not (tmp_path / "m").exists()


def test_a_kill_while_truncating_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(tmp_path / "m")
    log.write({"step": 1})
    log.write({"step": 2})

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        log.truncate_after(1)
    assert read_metrics(log.path) == [{"step": 1}, {"step": 2}]


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "m").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(CheckpointError, match="line 2"):
        read_metrics(tmp_path / "m")


@pytest.mark.parametrize("taken", [0, 7])
def test_a_full_disk_delays_lines_and_tears_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    """The disk takes none of the line, or only its first bytes."""
    warnings: list[str] = []
    log = MetricsLog(tmp_path / "m", warn=warnings.append)
    log.write({"step": 1})
    with monkeypatch.context() as full:

        class FullDisk(io.FileIO):
            def write(self, content: Any) -> int:
                if not taken:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return super().write(content[:taken])

        full.setattr(Path, "open", lambda self, *_, **__: FullDisk(self, "ab"))
        log.write({"step": 2})
        log.write({"step": 3})
    assert read_metrics(log.path) == [{"step": 1}]
    assert log.path.read_bytes().endswith(b"}\n")
    assert len(warnings) == 2
    assert "No space left" in warnings[0]
    log.close()
    assert read_metrics(log.path) == [{"step": 1}, {"step": 2}, {"step": 3}]


class Recorder:
    """Stands for the modules and runs of W&B and trackio, and for TensorBoard's writer."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> "Recorder":
            self.calls.append((name, args, kwargs))
            return self

        return call


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_lines_reach_the_sink_under_the_name_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, name, recorder)  # type: ignore[arg-type]
    with MetricsLog(tmp_path / "metrics.jsonl", [open_sink(name, tmp_path, {"seed": 1})]) as log:
        log.write({"step": 3, "loss": 2.0})
        log.write({"event": "sample", "at_step": 3, "reply": "hi"})
    (begin, _, options), *logged, (end, _, _) = recorder.calls
    assert (begin, end) == ("init", "finish")
    assert options["name"] == tmp_path.name
    assert options["config"] == {"seed": 1}
    assert logged == [("log", ({"loss": 2.0},), {"step": 3})]


def test_tensorboard_hides_what_a_resume_writes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    modules = {"tensorboard": recorder, "torch.utils.tensorboard": recorder}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
    with MetricsLog(tmp_path / "metrics.jsonl", [open_sink("tensorboard", tmp_path, {})]) as log:
        log.write({"step": 7, "loss": 2.0})
    assert recorder.calls[0] == (
        "SummaryWriter",
        (),
        {"log_dir": str(tmp_path / "tensorboard"), "purge_step": 7},
    )
    assert ("add_scalar", ("loss", 2.0, 7), {}) in recorder.calls
    assert recorder.calls[-1][0] == "close"


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MoesaicError, match=rf"pip install 'moesaic\[{name}\]'"):
        open_sink(name, tmp_path, {})


def test_an_unknown_sink_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MoesaicError, match="tensorboard, wandb, trackio"):
        open_sink("excel", tmp_path, {})


def test_a_sink_that_fails_is_left_and_the_run_goes_on(tmp_path: Path) -> None:
    class Broken:
        def log(self, line: Any) -> None:
            raise ConnectionError("no network")

        def close(self) -> None:
            pytest.fail("closed after it was left")

    warnings: list[str] = []
    with MetricsLog(tmp_path / "m", [Broken()], warn=warnings.append) as log:
        log.write({"step": 1})
        log.write({"step": 2})
    assert len(warnings) == 1
    assert "no network" in warnings[0]
    assert len(read_metrics(log.path)) == 2


def test_a_real_tensorboard_takes_a_line(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra moesaic[tensorboard]")
    with MetricsLog(tmp_path / "m", [open_sink("tensorboard", tmp_path, {"seed": 1})]) as log:
        log.write({"step": 1, "loss": 2.0})
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_the_numbers_of_a_line() -> None:
    line = {
        "step": 3,
        "stage": "x",
        "loss": 2,
        "skipped": True,
        "bits_per_byte": {"prose": 1.5},
        "load": [[0.25, 0.75]],
        "lr": None,
    }
    assert scalars(line) == {
        "loss": 2.0,
        "skipped": 1.0,
        "bits_per_byte/prose": 1.5,
        "load/min": 0.5,
        "load/max": 1.5,
    }
