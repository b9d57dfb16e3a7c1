"""A checkpoint is either whole or passed over; what is loaded equals what was saved, bit for bit."""

import errno
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from moesaic.errors import CheckpointError
from moesaic.train import checkpoint, checkpoint_files
from moesaic.train.checkpoint import CheckpointStore
from moesaic.train.checkpoint_files import CheckpointFiles


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_WAITS_S", (0.0,))


def small_state(value: float = 1.0) -> dict[str, Any]:
    return {
        "model": {"w": torch.full((64, 32), value), "b": torch.tensor([0.1, float("nan")])},
        "clock": torch.tensor(value),
    }


def store_at(folder: Path, keep: int = 2, retries: int = 0) -> tuple[CheckpointStore, list[str]]:
    warnings: list[str] = []
    return CheckpointStore(folder, keep, retries, warnings.append), warnings


def trained_model(seed: int, steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3 / 3, betas=(0.9, 0.95))
    for _ in range(steps):
        model(torch.randn(5, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def whole_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    model_state, optimizer_state = get_state_dict(model, optimizer)
    return {"model": model_state, "optimizer": optimizer_state["state"]}


def test_a_fresh_model_and_adamw_continue_exactly_where_the_saved_ones_were(tmp_path: Path) -> None:
    model, optimizer = trained_model(seed=0, steps=3)
    saved = whole_state(model, optimizer)
    extra = {"step": 3, "tokens": 123, "ledger": {"prose": 7}, "loss": 0.1 + 0.2}
    store, _ = store_at(tmp_path)
    assert store.save(3, {**saved, "rng": torch.get_rng_state()}, extra, background=False)

    other, fresh = trained_model(seed=1, steps=0)
    model_state, optimizer_state = get_state_dict(other, fresh)
    state = {"model": model_state, "optimizer": optimizer_state["state"]}
    path = store.newest_good()
    assert path is not None
    rng = torch.zeros_like(torch.get_rng_state())
    assert store.load(path, {**state, "rng": rng}) == extra
    set_state_dict(other, fresh, model_state_dict=model_state, optim_state_dict=optimizer_state)
    torch.set_rng_state(rng)
    batch = torch.randn(5, 8)
    for m, o in ((model, optimizer), (other, fresh)):
        m(batch).square().sum().backward()
        o.step()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_round_trip_keeps_types_bits_and_strides(tmp_path: Path) -> None:
    tree: dict[str, Any] = {
        "a": {
            "half": torch.randn(3, 5).bfloat16(),
            "empty": torch.zeros(0, 4),
            "one": torch.tensor(7, dtype=torch.int64),
        },
        "b": {"turned": torch.randn(4, 6).t(), "part": torch.randn(8, 8)[::2, 1:5]},
    }
    store, _ = store_at(tmp_path)
    assert store.save(1, tree, {}, background=False)
    base = torch.zeros(7, 6, 5)
    inside = base.permute(1, 2, 0)[:, 1:, 2:6]  # [6, 4, 4], neither contiguous nor its own memory
    blank: dict[str, Any] = {
        "a": {k: torch.zeros_like(v) for k, v in tree["a"].items()},
        "b": {"turned": inside[:, :, 1], "part": inside[1:5, :, 3]},
    }
    store.load(tmp_path / "step_00000001", blank)
    for key, tensor in tree["a"].items():
        assert blank["a"][key].dtype == tensor.dtype
        assert torch.equal(blank["a"][key], tensor)
    assert torch.equal(base[3, :, 1:], tree["b"]["turned"])
    assert torch.equal(base[5, 1:5, 1:], tree["b"]["part"])
    assert base.count_nonzero() == 24 + 16  # and nothing beside them was touched


def test_a_part_of_the_state_loads_alone(tmp_path: Path) -> None:
    store, _ = store_at(tmp_path)
    store.save(1, small_state(3.0), {}, background=False)
    part = {"model": {"w": torch.zeros(64, 32), "b": torch.zeros(2)}}
    store.load(tmp_path / "step_00000001", part)
    assert torch.equal(part["model"]["w"], torch.full((64, 32), 3.0))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ({"w": torch.zeros(64, 31), "b": torch.zeros(2)}, "model.w"),
        ({"w": torch.zeros(64, 32).bfloat16(), "b": torch.zeros(2)}, "model.w"),
        ({"w": torch.zeros(64, 32)}, "model.b"),
        ({"w": torch.zeros(64, 32), "b": torch.zeros(2), "new": torch.zeros(1)}, "model.new"),
    ],
    ids=["shape", "type", "left over", "missing"],
)
def test_a_tensor_that_does_not_fit_is_named_and_nothing_is_changed(
    tmp_path: Path, model: dict[str, torch.Tensor], name: str
) -> None:
    store, _ = store_at(tmp_path)
    store.save(1, small_state(), {}, background=False)
    with pytest.raises(CheckpointError, match=name):
        store.load(tmp_path / "step_00000001", {"model": model})
    assert all(not tensor.any() for tensor in model.values())


def test_what_cannot_be_stored_is_named_before_anything_is_written(tmp_path: Path) -> None:
    store, _ = store_at(tmp_path / "checkpoints")
    for odd in (1, None, "x", [torch.zeros(1)]):
        with pytest.raises(TypeError, match=r"model\.odd"):
            store.save(1, {"model": {"odd": odd}}, {})
    with pytest.raises(TypeError, match="share the name"):
        store.save(1, {"a.b": torch.zeros(1), "a": {"b": torch.zeros(1)}}, {})
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.save(1, small_state(), {"odd": {1, 2}})
    assert not (tmp_path / "checkpoints").exists()


def truncate(path: Path) -> None:
    (file,) = path.glob("*.distcp")
    file.write_bytes(file.read_bytes()[:-10])


def flip(path: Path, name: str) -> None:
    (file,) = path.glob(name)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "bytes instead of"),
        (lambda p: flip(p, "*.distcp"), "checksum"),
        (lambda p: flip(p, ".metadata"), "checksum"),
        (lambda p: flip(p, "manifest.json"), "manifest.json does not match COMMITTED"),
        (lambda p: (p / "COMMITTED").unlink(), "never completed"),
        (lambda p: (p / "extra.json").unlink(), "extra.json is missing"),
    ],
    ids=["truncated", "flipped tensor", "flipped metadata", "flipped manifest", "no marker", "missing file"],
)
def test_a_damaged_checkpoint_is_passed_over_with_its_reason(tmp_path: Path, damage: Any, reason: str) -> None:
    store, warnings = store_at(tmp_path)
    store.save(1, small_state(1.0), {"step": 1}, background=False)
    store.save(2, small_state(2.0), {"step": 2}, background=False)
    damage(tmp_path / "step_00000002")
    path = store.newest_good()
    assert path is not None
    assert store.load(path, small_state(0.0)) == {"step": 1}
    assert len(warnings) == 1
    assert "step_00000002" in warnings[0]
    assert reason in warnings[0]
    with pytest.raises(CheckpointError, match=reason):
        store.load(tmp_path / "step_00000002", small_state())


def forge(path: Path, content: bytes) -> None:
    """What someone would leave who also makes the marker fit."""
    (path / "manifest.json").write_bytes(content)
    (path / "COMMITTED").write_text(hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"format": 3}', b'{"format": 3, "files": {}}', b"\xff"])
def test_a_forged_manifest_is_refused_and_not_a_crash(tmp_path: Path, content: bytes) -> None:
    store, warnings = store_at(tmp_path)
    store.save(1, small_state(), {}, background=False)
    forge(tmp_path / "step_00000001", content)
    assert store.newest_good() is None
    assert len(warnings) == 1
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        store.load(tmp_path / "step_00000001", small_state())


def test_forged_metadata_is_refused_and_not_a_crash(tmp_path: Path) -> None:
    store, _ = store_at(tmp_path)
    store.save(1, small_state(), {}, background=False)
    path = tmp_path / "step_00000001"
    (path / ".metadata").write_bytes(b"junk")
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["files"][".metadata"] = {"bytes": 4, "sha256": hashlib.sha256(b"junk").hexdigest()}
    forge(path, json.dumps(manifest).encode())
    with pytest.raises(CheckpointError, match=r"\.metadata is damaged"):
        store.load(path, small_state())


def test_a_checkpoint_of_an_older_format_is_named(tmp_path: Path) -> None:
    store, warnings = store_at(tmp_path)
    store.save(1, small_state(), {}, background=False)
    forge(tmp_path / "step_00000001", b'{"format": 2, "step": 1, "pinned": false, "files": {}}')
    assert store.newest_good() is None
    assert "format 2, this one reads 3" in warnings[0]
    assert store.any_committed()


def test_a_leftover_partial_is_ignored_and_removed(tmp_path: Path) -> None:
    store, warnings = store_at(tmp_path)
    store.save(1, small_state(), {}, background=False)
    shutil.copytree(tmp_path / "step_00000001", tmp_path / "step_00000009.partial")
    path = store.newest_good()
    assert path is not None
    assert path.name == "step_00000001"
    assert not list(tmp_path.glob("*.partial"))
    assert not warnings


def test_an_empty_run_has_no_checkpoint(tmp_path: Path) -> None:
    assert store_at(tmp_path / "none")[0].newest_good() is None


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_newest_and_the_pinned_are_kept(tmp_path: Path) -> None:
    store, _ = store_at(tmp_path, keep=2)
    for step in range(1, 7):
        store.save(step, small_state(), {}, pin=step == 2, background=False)
    assert names(tmp_path) == ["step_00000002", "step_00000005", "step_00000006"]


def test_a_damaged_one_takes_no_place_among_the_kept(tmp_path: Path) -> None:
    store, _ = store_at(tmp_path, keep=2)
    for step in (1, 2):
        store.save(step, small_state(), {}, background=False)
    truncate(tmp_path / "step_00000002")
    store.save(3, small_state(), {}, background=False)
    assert names(tmp_path) == ["step_00000001", "step_00000003"]


def test_an_abandoned_future_is_removed(tmp_path: Path) -> None:
    store, _ = store_at(tmp_path, keep=1)
    store.save(5, small_state(), {}, background=False)
    flip(tmp_path / "step_00000005", "*.distcp")  # resumed from before it, since it is damaged
    store.save(3, small_state(), {}, background=False)
    assert names(tmp_path) == ["step_00000003"]


def test_a_step_saved_twice_holds_the_second(tmp_path: Path) -> None:
    store, _ = store_at(tmp_path, keep=1)
    for take in (1, 2):
        store.save(4, small_state(float(take)), {"take": take}, background=False)
    assert names(tmp_path) == ["step_00000004"]
    assert store.load(tmp_path / "step_00000004", small_state()) == {"take": 2}


def test_a_full_disk_is_retried_and_then_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, warnings = store_at(tmp_path, retries=2)
    store.save(1, small_state(), {"step": 1}, background=False)
    write = checkpoint_files.write_durably
    failures = 2

    def full(path: Path, text: bytes) -> None:
        nonlocal failures
        if failures and path.name == "manifest.json":
            failures -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text)

    monkeypatch.setattr(checkpoint_files, "write_durably", full)
    assert store.save(2, small_state(), {"step": 2}, background=False)
    assert [("No space left" in w, "follows" in w) for w in warnings] == [(True, True)] * 2
    failures = 3
    assert not store.save(3, small_state(), {"step": 3}, background=False)
    assert "training goes on" in warnings[-1]
    assert names(tmp_path) == ["step_00000001", "step_00000002"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a file that is always full")
def test_a_disk_that_fills_up_among_the_tensors_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, warnings = store_at(tmp_path)
    begin = CheckpointFiles.begin

    def with_full_file(self: CheckpointFiles, step: int) -> None:
        begin(self, step)
        (self.partial(step) / "__0_0.distcp").symlink_to("/dev/full")

    monkeypatch.setattr(CheckpointFiles, "begin", with_full_file)
    assert not store.save(1, {"w": torch.zeros(1 << 20)}, {}, background=False)
    assert "No space left on device" in warnings[0]
    assert names(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from moesaic.train import checkpoint, checkpoint_files
torch.set_num_threads(1)

def save_and_die(folder, point, step):
    store = checkpoint.CheckpointStore(folder, keep=1, retries=0)
    store.save(1, {"w": torch.full((1000,), 1.0)}, {"step": 1}, background=False)
    die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
    write, rename = checkpoint_files.write_durably, Path.rename
    if point == "tensors":
        FileSystemWriter.finish = die
    elif point in ("copied", "written", "committed"):
        store._on_phase = lambda step, phase: die() if phase == point else None
    elif point == "rename":
        Path.rename = lambda self, to: die() if self.name.endswith(".partial") else rename(self, to)
    else:
        checkpoint_files.write_durably = lambda path, text: die() if path.name == point else write(path, text)
    store.save(step, {"w": torch.full((1000,), 2.0)}, {"step": 2}, background=False)

for moment in sys.argv[2:]:
    if (child := os.fork()) == 0:
        point, step = moment.split("-")
        save_and_die(Path(sys.argv[1]) / moment, point, int(step))
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, moment
"""
POINTS = ("copied", "tensors", "written", "manifest.json", "rename", "COMMITTED")
MOMENTS = [f"{point}-{step}" for point in POINTS for step in (1, 2)]


def test_whenever_a_save_is_killed_the_one_before_it_loads(tmp_path: Path) -> None:
    """At each moment, in a new step (2) and in a step that is saved again (1)."""
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), *MOMENTS], check=True, timeout=300)
    for moment in MOMENTS:
        store, _ = store_at(tmp_path / moment, keep=1)
        path = store.newest_good()
        assert path is not None, moment
        state = {"w": torch.zeros(1000)}
        assert store.load(path, state) == {"step": 1}
        assert torch.equal(state["w"], torch.full((1000,), 1.0))
        assert store.save(3, state, {"step": 3}, background=False)
        assert names(store.folder) == ["step_00000003"]
