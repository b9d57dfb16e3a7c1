"""Bad input, as a person at the command line meets it: one or two lines that name cause and remedy, exit status 2,

no traceback, nothing half-written, and a run that can still go on.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from moesaic.cli import main
from moesaic.data import DataFolder
from moesaic.interop import save_model
from moesaic.recipe import Recipe
from moesaic.recipe.show import to_toml
from moesaic.train import metrics
from moesaic.train.checkpoint import problem_of


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No measuring of the machine, and weights that do not depend on the number of threads."""
    monkeypatch.setattr("moesaic.train.machine.gemm_peak", lambda *args: 1e12)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def place(tiny_recipe: Recipe, tiny_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `tiny.toml` and its data, already built."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(to_toml(tiny_recipe), encoding="utf-8")
    shutil.copytree(tiny_home, tmp_path / "runs" / "data")
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a call that must fail says: at most two lines."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(words)
    err = capsys.readouterr().err
    errors = err[err.index("error: ") :]
    assert end.value.code == 2
    assert len(errors.splitlines()) <= 2
    assert "Traceback" not in err
    return errors


def source(place: Path, name: str, content: bytes | None) -> Path:
    """A recipe whose one source is the file (or, without content, the empty folder) `name`."""
    if content is None:
        (place / name).mkdir()
    else:
        (place / name).write_bytes(content)
    recipe = place / "one.toml"
    recipe.write_text(
        f"""
        name = "one"
        data = {{ sources = [{{ name = "mine", path = "{name}" }}] }}
        model = {{ vocab_size = 300, d_model = 16, n_layers = 1, n_heads = 1, head_dim = 16, d_ff = 16, n_experts = 2 }}
        [[stages]]
        name = "pretrain"
        sources = ["mine"]
        tokens = 1000
        seq_len = 32
        batch = [{{ tokens = 64 }}]
        """,
        encoding="utf-8",
    )
    return recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.depth=3", "model.depth: unknown key; `moesaic recipe schema` lists the known ones"),
        ("model.n_kv_heads=3", "n_heads = 4 is not a multiple of n_kv_heads = 3; change n_kv_heads to a divisor of 4"),
        ("model.top_k=5", "top_k = 5 is more than n_experts = 4; lower top_k"),
        ("model.head_dim=7", "head_dim = 7 is odd, RoPE turns pairs; use 8"),
        ("stages.extend.batch=[{tokens=1000}]", "is not a whole number of sequences of 256; use 1024"),
        ("stages.extend.sources=['nowhere']", "reads sources that are not in data.sources: ['nowhere']"),
    ],
)
def test_a_recipe_that_cannot_be(change: str, message: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refusal(capsys, "train", "tiny.toml", "--set", change)
    assert not (place / "runs" / "tiny").exists()


@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_a_shard_that_is(how: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = next((place / "runs" / "data").glob("tiny-*/train/prose.bin"))
    content = shard.read_bytes()
    shard.unlink()
    if how == "truncated":
        shard.write_bytes(content[:100])
    said = refusal(capsys, "train", "tiny.toml")
    assert "prose.bin is missing" in said or "prose.bin has 100 bytes instead of" in said
    assert "delete the data folder and run `moesaic data build` again" in said


def test_checkpoints_that_are_all_damaged(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(4, monkeypatch)
    main_quietly("train", "tiny.toml")
    for path in (place / "runs" / "tiny" / "checkpoints").glob("step_*/*.distcp"):
        path.write_bytes(path.read_bytes()[:-1])
    before = (place / "runs" / "tiny" / "metrics.jsonl").read_bytes()
    said = refusal(capsys, "train", "tiny.toml", "--resume")
    assert "every checkpoint in runs/tiny/checkpoints is damaged or of another version; restore one from a copy" in said
    assert (place / "runs" / "tiny" / "metrics.jsonl").read_bytes() == before


def main_quietly(*words: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C at `step`."""
    write = metrics.MetricsLog.write

    def hooked(self: metrics.MetricsLog, line: dict[str, Any]) -> None:
        write(self, line)
        if line.get("step") == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(metrics.MetricsLog, "write", hooked)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty", None, r"source 'mine' \(.*empty\) holds no document; check path, files, kind and format"),
        ("nothing.txt", b"  \n", "holds no document"),
        ("latin.txt", "déjà vu".encode("latin-1"), r"latin\.txt.*UTF-8"),
        ("rows.jsonl", b'{"text": "fine"}\n{"text": \n', r"rows\.jsonl.*2"),
        ("rows.jsonl", '{"text": "déjà vu"}\n'.encode("latin-1"), r"rows\.jsonl.*UTF-8"),
    ],
    ids=["an empty folder", "an empty file", "latin-1 text", "a torn row", "latin-1 rows"],
)
@pytest.mark.parametrize("verb", [("data", "build"), ("train",)], ids=" ".join)
def test_a_source_that_is(
    verb: tuple[str, ...],
    name: str,
    content: bytes | None,
    message: str,
    place: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = source(place, name, content)
    assert re.search(message, refusal(capsys, *verb, str(recipe)))
    assert not [p for p in (place / "runs" / "data").iterdir() if p.name.startswith((".building", "one"))]


def test_a_prompt_longer_than_the_context(
    place: Path, tiny_data: DataFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tiny.model(), place / "model", tokenizer_folder=tiny_data.path / "tokenizer")
    said = refusal(capsys, "generate", "model", "word " * 200)
    assert "tokens and the model's context 64, which must hold the answer too; shorten the prompt to at most 63" in said


LIMITED = """
import resource, sys
{before}
from moesaic.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("limit", "words", "message"),
    [
        (0, ("train", "tiny.toml"), "run folder runs/tiny: "),
        (2000, ("data", "build", "tiny.toml", "--home", "fresh"), "cannot write data under fresh: "),
        (100_000, ("train", "tiny.toml"), "cannot write the weights to runs/tiny/model: "),
    ],
    ids=["for the recipe", "for shards", "for weights"],
)
def test_a_disk_without_room(limit: int, words: tuple[str, ...], message: str, place: Path) -> None:
    """A limit on the size of files stands for a full disk: both fail in the middle of a write."""
    before = f"""
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
import torch
torch.set_num_threads(1)
from moesaic.train import checkpoint, machine
checkpoint._WAITS_S, machine.gemm_peak = (0.0,), lambda *args: 1e12
"""
    command = [sys.executable, "-B", "-c", LIMITED.format(before=before), *words]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    error = done.stderr[done.stderr.index("error: ") :]
    assert message in error
    assert "choose another" in error
    assert len(error.splitlines()) <= 2
    assert "Traceback" not in done.stderr
    left = [p for p in place.rglob("*") if p.name.endswith(".partial") or p.name.startswith((".model", ".building"))]
    assert left == []
    assert all(problem_of(p) is None for p in place.glob("runs/*/checkpoints/*"))


def test_after_a_full_disk_the_run_goes_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test_a_disk_without_room(0, ("train", "tiny.toml"), "run folder runs/tiny: ", place)
    main_quietly("train", "tiny.toml", "--resume")
    assert "model in runs/tiny/model" in capsys.readouterr().out
