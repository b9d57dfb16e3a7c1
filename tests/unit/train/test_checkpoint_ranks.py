"""Checkpoints of several ranks: any layout reads any other's bit for bit, and what fails on one rank fails on all."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor, zeros
from torch.distributed.tensor.placement_types import Placement

from moesaic.errors import CheckpointError
from moesaic.train import checkpoint
from moesaic.train.checkpoint import CheckpointStore, problem_of
from ranks import Died, die, run_ranks

SHAPES = {
    "rows": (5, 7),  # divided by nothing
    "few": (3, 2),  # on four ranks one holds none of it
    "one": (1, 6),
    "experts": (3, 4, 5, 6),
    "vector": (7,),
    "first": (6, 4),
    "second": (6, 4),
    "copied": (5,),
    "alone": (2, 3),
    "clock": (),
}


def whole(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return torch.randn(SHAPES[name], generator=generator)


def store_at(folder: Path, retries: int = 0, warn: Any = lambda line: None, on_phase: Any = None) -> CheckpointStore:
    checkpoint._WAITS_S = (0.0,)
    return CheckpointStore(folder, 2, retries, warn, on_phase)


class Holder(nn.Module):
    """Parameters over (dp, tp): tensor parallel first, then FSDP2, as training does it; splits are uneven."""

    def __init__(self, tp: DeviceMesh, fill: bool) -> None:
        super().__init__()

        def placed(name: str, placement: Placement) -> nn.Parameter:
            values = whole(name) if fill else torch.zeros(SHAPES[name])
            return nn.Parameter(distribute_tensor(values, tp, [placement]))

        self.rows, self.few, self.one = placed("rows", Shard(0)), placed("few", Shard(0)), placed("one", Shard(0))
        self.experts, self.vector = placed("experts", Shard(0)), placed("vector", Replicate())


def sharded(mesh: DeviceMesh, fill: bool) -> dict[str, Tensor]:
    """The parameters of a Holder under their names; experts as another view of theirs, as the export has them."""
    holder = Holder(mesh["tp"], fill)
    fully_shard(holder, mesh=mesh["dp"], shard_placement_fn=lambda p: Shard(1 if p.ndim == 4 else 0))
    found: dict[str, Tensor] = dict(holder.named_parameters())
    found["experts"] = found["experts"].detach().permute(1, 2, 0, 3)
    return found


def expected(name: str) -> Tensor:
    return whole(name).permute(1, 2, 0, 3) if name == "experts" else whole(name)


def plain(fill: bool) -> dict[str, Tensor]:
    """Everything in one process. Experts lie in the order that the model has, not in the stored one."""
    found = {n: whole(n) if fill else torch.zeros(shape) for n, shape in SHAPES.items()}
    return {**found, "experts": found["experts"].permute(1, 2, 0, 3)}


def four_ranks(rank: int, fill: bool) -> dict[str, Tensor]:
    """dp 2 x tp 2, beside it two stages of a pipeline with a mesh each, replicas, and a name that one rank holds."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    state = sharded(mesh, fill)

    def values(name: str) -> Tensor:
        return whole(name) if fill else torch.zeros(SHAPES[name])

    stages = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "in"))
    name = ("first", "second")[rank // 2]
    state[name] = distribute_tensor(values(name), stages["in"], [Shard(rank // 2)])
    state["copied"], state["clock"] = values("copied"), values("clock")
    if rank == 3:
        state["alone"] = values("alone")
    return state


def check(state: dict[str, Tensor]) -> None:
    for name, tensor in state.items():
        values = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        assert torch.equal(values, expected(name)), name


def write_as_four(rank: int, folder: Path) -> list[tuple[int, bool]]:
    store = store_at(folder)
    state = four_ranks(rank, fill=True)
    store.save(1, {"model": state}, {"written by": 4})
    with torch.no_grad():
        for tensor in state.values():
            tensor.zero_()  # as training would change them meanwhile
    assert store.wait()
    return [(report.bytes, report.committed) for report in store.reports()]


def read_as_four(rank: int, folder: Path, path: Path) -> None:
    state = four_ranks(rank, fill=False)
    assert store_at(folder).load(path, {"model": state}) == {"written by": 1}
    check(state)


def read_as_two(rank: int, folder: Path, path: Path) -> None:
    """tp 2, split along other dimensions; experts through a view of memory in another order."""
    mesh = init_device_mesh("cpu", (2,))
    split = {"rows": 1, "few": 0, "one": 1, "vector": 0, "first": 1, "second": 0}
    state: dict[str, Tensor] = {
        n: zeros(SHAPES[n], device_mesh=mesh, placements=[Shard(d)]) for n, d in split.items()
    } | {n: torch.zeros(SHAPES[n]) for n in ("copied", "clock", "alone")}
    experts = zeros(SHAPES["experts"], device_mesh=mesh, placements=[Shard(0)])
    state["experts"] = experts.permute(1, 2, 0, 3)
    store_at(folder).load(path, {"model": state})
    check(state)
    assert torch.equal(experts.full_tensor(), whole("experts"))


def test_a_layout_reads_what_another_wrote_bit_for_bit(tmp_path: Path) -> None:
    reports = run_ranks(write_as_four, 4, tmp_path / "four", limit_s=300)
    path = tmp_path / "four" / "step_00000001"
    on_disk = sum(p.stat().st_size for p in path.iterdir())
    assert reports == [[(on_disk, True)]] * 4
    files = json.loads((path / "manifest.json").read_bytes())["files"]
    assert {f"__{rank}_0.distcp" for rank in range(4)} | {".metadata", "extra.json"} == files.keys()

    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    assert all(chunk.sizes.numel() for tensor in stored.values() for chunk in tensor.chunks)  # no empty pieces

    store, state = store_at(tmp_path / "one"), plain(fill=False)
    assert store.load(path, {"model": state}) == {"written by": 4}
    check(state)
    assert state["experts"].permute(2, 0, 1, 3).is_contiguous()  # filled where it lay
    assert store.save(1, {"model": state}, {"written by": 1}, background=False)
    run_ranks(read_as_four, 4, tmp_path / "four", tmp_path / "one" / "step_00000001", limit_s=300)
    run_ranks(read_as_two, 2, tmp_path / "two", path)


def write_replicas(rank: int, folder: Path) -> None:
    store = store_at(folder)
    state = {"a": torch.ones(100_000), "b": torch.ones(100_000)}
    assert store.save(1, state, {}, background=False)
    mesh = init_device_mesh("cpu", (2,))
    addends = DTensor.from_local(torch.ones(2), mesh, [Partial()])
    with pytest.raises(TypeError, match="addends"):
        store.save(2, {"w": addends}, {})


def test_replicas_are_stored_once_and_addends_are_refused(tmp_path: Path) -> None:
    run_ranks(write_replicas, 2, tmp_path)
    values = 2 * 4 * 100_000
    assert values < sum(p.stat().st_size for p in tmp_path.glob("step_*1/*.distcp")) < values * 1.1
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]


def load_error(store: CheckpointStore, path: Path, state: dict[str, Any]) -> str:
    """What is said, having checked that nothing was changed."""
    try:
        store.load(path, state)
    except CheckpointError as error:
        assert not any(tensor.any() for tensor in state["model"].values())
        return str(error)
    return "loaded"


def fail_to_load(rank: int, folder: Path) -> list[str]:
    """Every kind of bad checkpoint and of bad state, on both ranks or on one."""
    warnings: list[str] = []
    store = store_at(folder, warn=warnings.append)
    mine = {"ab"[rank]: torch.ones(4), "both": torch.ones(2)}
    for step in (1, 2, 3):
        assert store.save(step, {"model": mine}, {"step": step}, background=False)
    blank = {name: torch.zeros_like(t) for name, t in mine.items()}
    good = folder / "step_00000002"
    odd = {"model": {**blank, "odd": torch.zeros(1)} if rank == 1 else blank}
    wide = {"model": {**blank, "both": torch.zeros(3)} if rank == 1 else blank}
    short = {"model": {"both": torch.zeros(2)} if rank == 0 else blank}
    said = [load_error(store, good, state) for state in (odd, wide, short)]
    assert load_error(store, good, {"model": blank}) == "loaded"  # "a" and "b" stand on one rank each
    if rank == 0:
        (bad,) = folder.glob("step_*3/__1_0.distcp")
        bad.write_bytes(bad.read_bytes()[:-1] + b"?")
        shutil.copytree(good, folder / "step_00000005.partial")
        shutil.copytree(good, folder / "step_00000004")
        (folder / "step_00000004" / "COMMITTED").unlink()
    dist.barrier()
    for tensor in blank.values():
        tensor.zero_()
    for step in (3, 4, 5):
        said.append(load_error(store, folder / f"step_{step:08d}", {"model": blank}))
    assert store.newest_good() == good
    assert store.any_committed()
    assert len(warnings) == (2 if rank == 0 else 0)
    assert store.load(good, {"model": blank}) == {"step": 2}
    return said


def test_what_is_wrong_on_one_rank_is_one_error_on_all(tmp_path: Path) -> None:
    first, second = run_ranks(fail_to_load, 2, tmp_path)
    assert first == second
    for said, reason in zip(
        first,
        (
            "has no tensor 'model.odd'",
            "tensor 'model.both' is (2,) torch.float32 there and (3,) torch.float32 here",
            "holds 'model.a', which has no place here",
            "__1_0.distcp does not match its checksum",
            "it was never completed",
            "it was never completed",
        ),
        strict=True,
    ):
        assert reason in said


def fail_to_save(rank: int, folder: Path) -> list[str]:
    """A disk that is full on rank 1 alone, first for one try, then for all."""
    warnings: list[str] = []
    write, failures = checkpoint.write_tensors, 1

    def write_or_fail(partial: Path, *rest: Any) -> None:
        nonlocal failures
        if failures and rank == 1:
            failures -= 1
            (partial / "__1_0.distcp").symlink_to("/dev/full")
        write(partial, *rest)

    checkpoint.write_tensors = write_or_fail
    store = store_at(folder, retries=1, warn=warnings.append)
    state = {"ab"[rank]: torch.ones(1 << 16)}
    assert store.save(1, state, {})
    assert store.wait()
    failures = 2
    assert store.save(2, state, {})
    assert not store.wait()
    assert [report.committed for report in store.reports()] == [True, False]
    assert store.newest_good() == folder / "step_00000001"
    return warnings


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a file that is always full")
def test_a_disk_that_is_full_for_one_rank_fails_the_save_for_all(tmp_path: Path) -> None:
    first, second = run_ranks(fail_to_save, 2, tmp_path)
    assert ["No space left" in line for line in first] == [True] * 3
    assert "training goes on" in first[-1]
    assert second == []
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]


def train_and_save(rank: int, folder: Path) -> None:
    """Collectives of training, in an order and number of their own, while saves are under way."""
    store, total = store_at(folder), torch.zeros(1)
    for step in range(1, 6):
        store.save(step, {"w": torch.full((1000,), float(step))}, {})
        for _ in range(50):
            term = torch.ones(1)
            dist.all_reduce(term)
            total += term
    assert store.wait()
    assert total == 5 * 50 * 2
    assert [report.committed for report in store.reports()] == [True] * 5


def test_collectives_of_training_and_of_a_save_do_not_mix(tmp_path: Path) -> None:
    run_ranks(train_and_save, 2, tmp_path)
    assert problem_of(tmp_path / "step_00000005") is None


def save_and_die(rank: int, folder: Path, victim: int, fatal: str) -> bool:
    """Save once, then die on one rank at a phase of the second save; what the other makes of it."""

    def on_phase(step: int, phase: str) -> None:
        if (step, phase, rank) == (2, fatal, victim):
            die()

    store = store_at(folder, retries=3, on_phase=on_phase)
    state = {"ab"[rank]: torch.ones(1000)}
    store.save(1, state, {}, background=False)
    store.save(2, state, {})
    return store.wait()


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("fatal", ["copied", "written", "committed"])
def test_a_rank_that_dies_during_a_save_leaves_a_good_checkpoint_and_no_hang(
    tmp_path: Path, victim: int, fatal: str
) -> None:
    results = run_ranks(save_and_die, 2, tmp_path, victim, fatal, deaths=True)
    assert results[victim] == Died(-9)
    if fatal != "committed":  # after it the survivor may or may not have been told
        assert results[1 - victim] is False
    newest = store_at(tmp_path).newest_good()
    assert newest is not None
    assert newest.name == ("step_00000002" if fatal == "committed" else "step_00000001")
