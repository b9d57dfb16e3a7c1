"""Kill -9 at any moment costs time and nothing else: the resumed run is the undisturbed one, bit for bit.

Moments are drawn from a seed, three in each stage: right after a step, in the middle of a save, and among the
evaluations or before the first checkpoint of the stage. Same machine, same number of threads (one). Compared are all
fields of metrics.jsonl but those that hold a time or a rate, the ledger, and every tensor of the finished model.
"""

import json
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import tiny
from moesaic.recipe import Recipe
from moesaic.train.checkpoint import problem_of

TIMES = {"seconds", "data_seconds", "tokens_per_second", "model_flops_per_second", "peak_share", "time_iso"}
STAGES = ("pretrain", "extend", "instruct")
EVERY = 3

# Kills itself, as `kill -9` would, when the step is logged, or in the middle of the save that begins at that step.
# The peak of the machine is not measured: nine restarts would spend most of their time on it.
HOOK = """
import os, signal
from moesaic.train import checkpoint_files, machine, metrics
machine.gemm_peak = lambda *args: 1e12
moment, step = {moment!r}, {step}
write, commit, begin = metrics.MetricsLog.write, checkpoint_files.CheckpointFiles.commit, checkpoint_files.write_durably
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def write_and_die(self, line):
    write(self, line)
    if moment == "step" and line.get("step") == step:
        die()
    if moment == "event" and line.get("event") == "sample" and line["at_step"] >= step:
        die()
def commit_and_die(self, at, *rest):
    if moment == "save" and at >= step:
        die()
    return commit(self, at, *rest)
def mark_and_die(path, content):
    if moment == "marker" and path.name == checkpoint_files.MARKER and int(path.parent.name[5:]) >= step:
        die()
    begin(path, content)
metrics.MetricsLog.write = write_and_die
checkpoint_files.CheckpointFiles.commit = commit_and_die
checkpoint_files.write_durably = mark_and_die
"""
QUIET = "from moesaic.train import machine\nmachine.gemm_peak = lambda *args: 1e12\n"


def spans(run: Path) -> dict[str, tuple[int, int]]:
    """First and last step of each stage: how many there are depends on the interpreter's library, which is the text."""
    found: dict[str, tuple[int, int]] = {}
    for line in tiny.steps(run):
        first, _ = found.get(line["stage"], (line["step"], 0))
        found[line["stage"]] = (first, line["step"])
    return found


def moments(steps: dict[str, tuple[int, int]], seed: int) -> list[tuple[str, int]]:
    """(kind, step) of the nine deaths, in order: three in each stage, one of them during a save."""
    dice = random.Random(seed)
    found: list[tuple[str, int]] = []
    for i, stage in enumerate(STAGES):
        first, last = steps[stage]
        early = dice.randrange(first, first + 3)
        saving = dice.choice([s for s in range(first, last) if s % EVERY == 0 and s > early])
        after = dice.randrange(saving + 1, last) if saving + 1 < last else last
        found += [("step", early), (("save", "marker", "save")[i], saving), (("event", "step", "step")[i], after)]
    return found


def finish(recipe: Recipe, run: Path, hook: str, *, resume: bool) -> str:
    """Run to the end of the process; SIGKILL is what it must die of when the hook says so."""
    process = tiny.start_training(recipe, run, resume=resume, hook=hook)
    output, _ = process.communicate()
    expected = 0 if hook == QUIET else -signal.SIGKILL
    assert process.returncode == expected, output
    return output


@pytest.fixture(scope="module")
def runs(
    tiny_recipe: Recipe, tiny_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, list[tuple[str, int]]]:
    """The undisturbed run, the one that died nine times, and the moments."""
    home = tmp_path_factory.mktemp("drill")
    shutil.copytree(tiny_home, home / "data")
    finish(tiny_recipe, home / "whole", QUIET, resume=False)
    deaths = moments(spans(home / "whole"), seed=2024)
    for i, (moment, step) in enumerate(deaths):
        finish(tiny_recipe, home / "killed", HOOK.format(moment=moment, step=step), resume=i > 0)
        partials = list((home / "killed" / "checkpoints").glob("*.partial"))
        assert partials or moment != "save", (moment, step)  # a save in the background may die with any step
    finish(tiny_recipe, home / "killed", QUIET, resume=True)
    return home / "whole", home / "killed", deaths


def without_times(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in TIMES}


def test_the_moments_are_what_was_promised(runs: tuple[Path, Path, list[tuple[str, int]]]) -> None:
    whole, _, deaths = runs
    stage_of = {line["step"]: line["stage"] for line in tiny.steps(whole)}
    assert list(spans(whole)) == list(STAGES)
    assert Counter(stage_of[step] for _, step in deaths) == dict.fromkeys(STAGES, 3)
    for stage in STAGES:
        kinds = [kind for kind, step in deaths if stage_of[step] == stage]
        assert "step" in kinds
        assert {"save", "marker"} & set(kinds)


def test_every_line_is_bit_equal_and_stands_once(runs: tuple[Path, Path, list[tuple[str, int]]]) -> None:
    """Losses, norms, learning rates, loads, token counts, evaluations and samples, in the same order."""
    whole, killed, deaths = runs
    lines = [without_times(line) for line in tiny.lines(killed) if line.get("event") != "resume"]
    expected = [without_times(line) for line in tiny.lines(whole)]
    assert [line.get("step") for line in lines] == [line.get("step") for line in expected]
    for ours, theirs in zip(lines, expected, strict=True):
        assert ours == theirs  # floats too: json keeps every bit
    steps = [line["step"] for line in tiny.steps(killed)]
    assert steps == list(range(1, spans(whole)["instruct"][1] + 1))
    resumes = [line["at_step"] for line in tiny.lines(killed) if line.get("event") == "resume"]
    assert resumes == sorted(resumes)
    assert len(resumes) == len(deaths)


def test_the_ledger_is_equal(runs: tuple[Path, Path, list[tuple[str, int]]]) -> None:
    whole, killed, _ = runs
    ledger = json.loads((killed / "ledger.json").read_text())
    assert ledger == json.loads((whole / "ledger.json").read_text())
    assert ledger["total"] == sum(line["batch_tokens"] for line in tiny.steps(killed))


def test_the_weights_are_bit_equal(runs: tuple[Path, Path, list[tuple[str, int]]]) -> None:
    whole, killed, _ = runs
    ours, theirs = tiny.tensors(killed / "model"), tiny.tensors(whole / "model")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.tobytes() == theirs[name].tobytes(), name
    for name in ("config.json", "tokenizer.json", "README.md", "generation_config.json"):
        assert (killed / "model" / name).read_bytes() == (whole / "model" / name).read_bytes(), name


def test_what_the_last_checkpoints_hold_is_equal(runs: tuple[Path, Path, list[tuple[str, int]]]) -> None:
    """Also what no step of this run shows: norms that the spike guard remembers, the loader's place, epochs."""
    whole, killed, _ = runs
    names = {p.name for p in (whole / "checkpoints").iterdir()}
    assert {p.name for p in (killed / "checkpoints").iterdir()} == names
    assert any("train_step" in json.loads((whole / "checkpoints" / n / "extra.json").read_text()) for n in names)
    for name in names:
        ours, theirs = (json.loads((run / "checkpoints" / name / "extra.json").read_text()) for run in (killed, whole))
        assert ours == theirs, name


def test_nothing_is_left_lying_about(runs: tuple[Path, Path, list[tuple[str, int]]]) -> None:
    _, killed, _ = runs
    assert not list(killed.rglob("*.partial"))
    for folder in (killed / "checkpoints").iterdir():
        assert problem_of(folder) is None
    assert {p.name for p in killed.iterdir()} == {
        "recipe.toml",
        "forecast.json",
        "metrics.jsonl",
        "ledger.json",
        "checkpoints",
        "model",
    }


def test_a_kill_from_outside_while_a_checkpoint_is_being_written(
    runs: tuple[Path, Path, list[tuple[str, int]]], tiny_recipe: Recipe
) -> None:
    """No hook decides when: we watch the folder and strike as soon as a save has begun."""
    whole, _, _ = runs
    run = whole.parent / "struck"
    process = tiny.start_training(tiny_recipe, run, hook=QUIET)
    try:
        deadline = time.monotonic() + 120
        while not list((run / "checkpoints").glob("step_0000001[2-9].partial")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.0005)
    finally:
        process.kill()
    process.communicate()
    finish(tiny_recipe, run, QUIET, resume=True)
    ours, theirs = tiny.tensors(run / "model"), tiny.tensors(whole / "model")
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)
    assert [line["step"] for line in tiny.steps(run)] == [line["step"] for line in tiny.steps(whole)]
