"""Bad input on several processes, through the command line: one error of one or two lines, told by rank 0 alone, and

a clean end of all ranks. Ranks are forked with torch imported, and meet at a store of this process, as under torchrun;
torchrun itself starts them where it takes part in what happens.
"""

import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import tiny
from moesaic.cli import main
from moesaic.parallel.launch import PRELOAD
from moesaic.recipe import Recipe, check_recipe
from moesaic.recipe.show import to_toml
from moesaic.train import machine

LIMIT_S = 90.0
pytestmark = pytest.mark.timeout(240)

TWO = ("train", "tiny.toml", "--layout", "dp=2")


@dataclass(frozen=True)
class Said:
    """How one rank ended, and what it wrote."""

    status: int | None
    out: str
    err: str

    @property
    def errors(self) -> str:
        """From the first `error: ` on."""
        return self.err[self.err.index("error: ") :] if "error: " in self.err else ""


def one_rank(rank: int, n: int, port: int, words: Sequence[str], place: str, stop: int | None) -> None:
    """The command line as rank `rank` of `n`."""
    os.chdir(place)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in told.items()}, TORCHELASTIC_USE_AGENT_STORE="True")
    torch.set_num_threads(1)
    machine.gemm_peak = lambda *args: 1e12  # type: ignore[assignment]
    if stop is not None:
        from moesaic.train.step import TrainStep

        call = TrainStep.__call__

        def hooked(self: TrainStep, batch: object, lr: float, step: int) -> object:
            if step == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return call(self, batch, lr, step)  # type: ignore[arg-type]

        TrainStep.__call__ = hooked  # type: ignore[assignment, method-assign]
    main(words)


def ranks(place: Path, *words: Sequence[str], stop: int | None = None) -> list[Said]:
    """Start one rank for each list of words; `stop`: SIGTERM reaches all in that step."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=LIMIT_S))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    n = len(words)
    started = [
        context.Process(target=one_rank, args=(rank, n, store.port, list(w), str(place), stop))
        for rank, w in enumerate(words)
    ]
    deadline = time.monotonic() + LIMIT_S
    try:
        for process in started:
            process.start()
        while any(p.exitcode is None for p in started) and time.monotonic() < deadline:
            multiprocessing.connection.wait([p.sentinel for p in started if p.exitcode is None], timeout=1.0)
            if any(p.exitcode for p in started):  # torchrun ends the others then
                time.sleep(0.1)
                for process in started:
                    process.terminate()
        codes = [process.exitcode for process in started]
    finally:
        for process in started:
            process.kill()
            process.join()
    return [Said(c, (place / f"out{r}").read_text(), (place / f"err{r}").read_text()) for r, c in enumerate(codes)]


def refused(said: list[Said], message: str) -> None:
    """Rank 0 says it in at most two lines, the others nothing; all have ended with 2, or been ended after rank 0."""
    assert said[0].status == 2, said
    assert all(s.status in (2, -signal.SIGTERM) for s in said), said
    assert message in said[0].errors, said[0].err
    assert len(said[0].errors.strip().splitlines()) <= 2
    for s in said:
        assert "Traceback" not in s.err
    for s in said[1:]:
        assert s.out == ""
        assert "error" not in s.err.lower(), s.err


@pytest.fixture(scope="module")
def place(tiny_recipe: Recipe, tiny_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with `tiny.toml`, its data, a run `whole` to the end and a run `half` stopped by SIGTERM."""
    home = tmp_path_factory.mktemp("bad ranks")
    tree = tiny_recipe.model_dump(mode="json")
    tree["stages"] = [tree["stages"][0] | {"tokens": 6000, "batch": [{"tokens": 512}]}]
    tree["hardware"]["count"] = 4
    (home / "tiny.toml").write_text(to_toml(check_recipe(tree, "tiny")), encoding="utf-8")
    shutil.copytree(tiny_home, home / "runs" / "data")
    whole = ranks(home, *[[*TWO, "--run", "whole"]] * 2)
    assert [s.status for s in whole] == [0, 0], whole
    assert "model in runs/whole/model" in whole[0].out
    assert "left" in whole[0].out  # progress
    assert whole[1].out == ""
    half = ranks(home, *[[*TWO, "--run", "half"]] * 2, stop=5)
    assert [s.status for s in half] == [0, 0], half
    assert "stopped after step 5 as asked; continue with --resume" in half[0].out
    assert half[1].out == ""
    return home


def losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in tiny.steps(run)]


def copy_of(place: Path, run: str, name: str) -> Path:
    shutil.copytree(place / "runs" / run, place / "runs" / name)
    return place / "runs" / name


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("tp=3", "tp = 3 does not divide n_heads = 4; change tp or n_heads"),
        ("dp=3", "dp = 3 does not divide sequences of a pretrain batch = 8"),
        ("cp=3", "cp = 3 (2 cp x tp = 6) does not divide stages.pretrain.seq_len = 64"),
        ("pp=5", "pp = 5 stages for n_layers = 2; lower pp or chunks"),
        ("pp=2,schedule=interleaved", "pp = 2 stages of 2 pieces for n_layers = 2; lower pp or chunks"),
        ("dp=2,ep=3", "ep = 3 does not divide dp x cp x tp = 2"),
        ("dp=8,ep=8", "ep = 8 does not divide n_experts = 4"),
        ("tp=4,etp=2", "etp = 2: experts are whole or split like dense blocks; use 1 or tp = 4"),
        ("pp=2,schedule=zero_bubble,zero=3", "use zero = 1 or another schedule"),
        ("pp=2,schedule=zero_bubble,recompute=full", "use recompute = 'selective' or another schedule"),
        ("dp=0", "dp = 0"),
    ],
)
def test_a_layout_that_cannot_be(
    layout: str, message: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as end:
        main(["train", "tiny.toml", "--run", "never", "--layout", layout])
    err = capsys.readouterr().err
    assert end.value.code == 2
    assert message in err
    assert len(err.strip().splitlines()) <= 2
    assert not (place / "runs" / "never").exists()


@pytest.mark.parametrize(
    ("n", "words", "message"),
    [
        (2, ("--layout", "tp=3"), "tp = 3 does not divide n_heads = 4"),
        (2, (), "stage pretrain of tiny needs 1 process and 2 are running; start 1, or change --layout"),
        (1, ("--layout", "dp=2"), "needs 2 processes (dp = 2) and 1 is running; start 2, or change --layout"),
        (2, ("--layout", "dp=2,tp=2"), "needs 4 processes (dp = 2, tp = 2) and 2 are running; start 4"),
        (2, ("--layout", "dp=2", "--stage", "nowhere"), "no stage 'nowhere' in recipe 'tiny'"),
        (2, ("--wrong",), "No such option: --wrong"),
    ],
    ids=["no layout", "too many", "too few", "another product", "no such stage", "no such option"],
)
def test_what_cannot_begin_leaves_no_run(n: int, words: tuple[str, ...], message: str, place: Path) -> None:
    said = ranks(place, *[["train", "tiny.toml", "--run", "never", *words]] * n)
    if words == ("--wrong",):
        assert said[0].status == 2
        assert said[0].err.count(message) == 1
        assert said[1].err == ""
    else:
        refused(said, message)
    assert not (place / "runs" / "never").exists()


def test_a_sink_that_only_rank_0_opens_fails_on_all(place: Path) -> None:
    refused(ranks(place, *[[*TWO, "--run", "sink", "--log", "nowhere"]] * 2), "--log nowhere: unknown; choose one of")
    assert not list((place / "runs" / "sink").glob("checkpoints/step_*"))


def test_a_ramp_that_asks_for_other_processes(place: Path) -> None:
    ramp = "stages.pretrain.batch=[{tokens=256,dp=2},{after_tokens=1000,tokens=256,dp=1}]"
    words = [*TWO, "--run", "ramp", "--set", ramp]
    refused(ranks(place, words, words), "batches of 256 tokens begin, on 1 process: start 1 with --resume")
    (said,) = ranks(place, [*words, "--resume"])
    assert said.status == 0, said
    assert [step for step, _ in losses(place / "runs" / "ramp")] == list(
        range(1, len(losses(place / "runs" / "ramp")) + 1)
    )


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (("--set", "seed=5"), "ranks disagree on the recipe: rank 0 has "),
        (("--resume",), "ranks disagree on the options: rank 0 has "),
    ],
    ids=["another seed", "another option"],
)
def test_ranks_that_disagree(second: tuple[str, ...], message: str, place: Path) -> None:
    refused(ranks(place, [*TWO, "--run", "never"], [*TWO, "--run", "never", *second]), message)
    assert not (place / "runs" / "never").exists()


def test_sigterm_to_all_ranks_costs_nothing(place: Path) -> None:
    """All ranks save once; the resumed run is bit-equal to the one that was left alone."""
    run = copy_of(place, "half", "resumed")
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"step_00000003", "step_00000005"}
    said = ranks(place, *[[*TWO, "--run", "resumed", "--resume"]] * 2)
    assert [s.status for s in said] == [0, 0], said
    assert losses(run) == losses(place / "runs" / "whole")


def test_a_run_goes_on_in_another_layout(place: Path) -> None:
    run = copy_of(place, "half", "other layout")
    said = ranks(place, *[["train", "tiny.toml", "--layout", "tp=2", "--run", "other layout", "--resume"]] * 2)
    assert [s.status for s in said] == [0, 0], said
    assert "".join(said[0].out.split()).count("sumsmaydifferinthelastbits") == 1
    assert said[1].out == ""
    for (step, ours), (same, theirs) in zip(losses(run), losses(place / "runs" / "whole"), strict=True):
        assert step == same
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_a_checkpoint_of_another_model(place: Path) -> None:
    other = ["--set", "model.d_ff=64"]
    refused(
        ranks(place, *[[*TWO, "--run", "half", "--resume", *other]] * 2),
        "runs/half was begun with another system (model, data, stages or seed)",
    )
    words = [*TWO, "--run", "copied", "--resume", "--set", "seed=4"]  # a model of the same shape
    shutil.copytree(place / "runs" / "half" / "checkpoints", place / "runs" / "copied" / "checkpoints")
    refused(ranks(place, words, words), "the newest checkpoint is of another system (model, data, stages or seed)")
    assert not (place / "runs" / "copied" / "metrics.jsonl").exists()  # nothing was trained


def test_tampered_and_half_written_checkpoints(place: Path) -> None:
    """The newest is passed over; when none is good, that is said."""
    run = copy_of(place, "half", "tampered")
    shard = run / "checkpoints" / "step_00000005" / "__1_0.distcp"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    shutil.copytree(shard.parent, run / "checkpoints" / "step_00000006.partial")
    worse = copy_of(place, "tampered", "worse")
    said = ranks(place, *[[*TWO, "--run", "tampered", "--resume"]] * 2)
    assert [s.status for s in said] == [0, 0], said
    told = " ".join(said[0].out.split())
    assert told.count("passed over checkpoint step_00000005: __1_0.distcp does not match its checksum") == 1
    assert losses(run) == losses(place / "runs" / "whole")

    (worse / "checkpoints" / "step_00000003" / ".metadata").unlink()
    before = (worse / "metrics.jsonl").read_bytes()
    said = ranks(place, *[[*TWO, "--run", "worse", "--resume"]] * 2)
    refused(said, "every checkpoint in runs/worse/checkpoints is damaged or of another version; restore one")
    assert (worse / "metrics.jsonl").read_bytes() == before


FAILS = """
import os, torch
torch.set_num_threads(1)
from moesaic.train import machine
from moesaic.train.step import TrainStep
machine.gemm_peak = lambda *args: 1e12
call = TrainStep.__call__
def hooked(self, batch, lr, step):
    if step == 3 and os.environ["RANK"] == "1":
        raise OSError(28, "No space left on device")
    return call(self, batch, lr, step)
TrainStep.__call__ = hooked
from moesaic.cli import main
main()
"""


def children(pid: int) -> set[int]:
    """All processes below one."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, _, rest = stat.read_text().partition(" (")
        except OSError:
            continue
        found[int(number)] = int(rest.rpartition(")")[2].split()[1])
    below = {pid}
    while more := {child for child, parent in found.items() if parent in below} - below:
        below |= more
    return below - {pid}


def gone(pids: set[int]) -> bool:
    deadline = time.monotonic() + 20
    while (left := {p for p in pids if _runs(p)}) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not left


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def started(place: Path, *words: str) -> "subprocess.Popen[str]":
    """A command in a session of its own, as from a terminal."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *words], cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def test_under_torchrun_one_rank_fails_alone(place: Path) -> None:
    """Rank 0 tells it: rank 1's words come over before torchrun ends all."""
    (place / "fails.py").write_text(FAILS, encoding="utf-8")
    process = started(place, *TORCHRUN, "--", "fails.py", *TWO, "--run", "alone")
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1  # torchrun's
    assert [line for line in err.splitlines() if line.startswith("error: ")] == [
        "error: rank 1: run folder runs/alone: writing: No space left on device; free some space or choose another "
        "place, then continue with --resume"
    ]
    assert "Traceback" not in err[: err.index("error: ")]


@pytest.mark.parametrize("how", ["SIGINT to the terminal's group", "SIGTERM to the supervisor", "SIGTERM to torchrun"])
def test_a_signal_to_whoever_started_the_ranks(how: str, place: Path) -> None:
    """All ranks save once and end, no process is left, and the run goes on bit-equal."""
    run = place / "runs" / how
    words = ("-m", "moesaic.cli", *TWO, "--run", how, "--set", "stages.pretrain.tokens=400_000")
    if "torchrun" in how:
        words = (*TORCHRUN, "-m", "--", *words[1:])
    process = started(place, *words)
    deadline = time.monotonic() + LIMIT_S
    while not (run / "checkpoints" / "step_00000003" / "COMMITTED").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    below = children(process.pid)
    assert len(below) >= 2
    if "group" in how:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == (1 if "torchrun" in how else 0), err
    assert out.count("as asked; continue with --resume") == 1, out + err
    assert gone(below)
    steps = losses(run)
    checkpoint = run / "checkpoints" / f"step_{steps[-1][0]:08}"
    assert (checkpoint / "COMMITTED").exists()
    assert json.loads((checkpoint / "extra.json").read_text())["progress"]["step"] == steps[-1][0]
