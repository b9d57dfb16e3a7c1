"""A run goes through all stages, keeps its books exactly, ends cleanly when asked, and refuses what does not fit."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from moesaic import train
from moesaic.data import Tokenizer, data_path
from moesaic.errors import CheckpointError, DataError, RecipeError
from moesaic.interop import load_model
from moesaic.model import SamplingSettings, generate_tokens
from moesaic.model.kernels import choose_kernels
from moesaic.recipe import Recipe, read_recipe
from moesaic.recipe.overrides import with_values
from moesaic.train import checkpoint, checkpoint_files, metrics, watch
from moesaic.train.report import write_report
from moesaic.train.schedule import learning_rate


class Killed(BaseException):
    """Stands for the end of the process: nothing in the package catches it."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread_and_no_measuring() -> Iterator[None]:
    """Sums must be made in the same order by every run here; and the peak of this machine is no test's business."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moesaic.train.machine.gemm_peak", lambda *args: 1e12)
        patch.setattr("moesaic.train.checkpoint._WAITS_S", (0.0,))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tiny_recipe: Recipe, tiny_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run. Tests read it; who writes takes a copy."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    assert train(tiny_recipe, run, data_home=tiny_home) == run / "model"
    return run


def changed(recipe: Recipe, *values: str) -> Recipe:
    return with_values(recipe, values, Path())


def alone(recipe: Recipe, stage: str, *values: str) -> Recipe:
    """`recipe` with that stage only."""
    table = recipe.stage(stage).model_dump(mode="json", exclude_none=True)
    return changed(recipe.model_copy(update={"stages": (recipe.stage(table["name"]),)}), *values)


def assert_same_weights(ours: Path, theirs: Path) -> None:
    a, b = tiny.tensors(ours), tiny.tensors(theirs)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.tobytes() == b[name].tobytes(), name


def assert_nothing_twice(run: Path) -> None:
    """No step and no event stands twice, but for resumes."""
    seen = [line["step"] for line in tiny.steps(run)]
    assert seen == list(range(1, len(seen) + 1))
    events = [
        (line["event"], line["stage"], line["at_step"], line.get("before"), line.get("prompt"))
        for line in tiny.lines(run)
        if line.get("event", "resume") != "resume"
    ]
    assert len(events) == len(set(events))


# What a run leaves behind


def test_the_run_folder_holds_what_its_contract_lists(finished: Path, tiny_recipe: Recipe) -> None:
    assert read_recipe(finished / "recipe.toml") == tiny_recipe
    assert [s["name"] for s in json.loads((finished / "forecast.json").read_text())["stages"]] == [
        "pretrain",
        "extend",
        "instruct",
    ]
    names = {path.name for path in (finished / "model").iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
        "README.md",
    }
    assert {p.name for p in finished.iterdir()} == {
        "recipe.toml",
        "forecast.json",
        "metrics.jsonl",
        "ledger.json",
        "checkpoints",
        "model",
    }
    for folder in (finished / "checkpoints").iterdir():
        assert checkpoint.problem_of(folder) is None
    assert write_report(finished).name == "report.html"
    (finished / "report.html").unlink()


def test_stages_follow_each_other_and_steps_count_on(finished: Path, tiny_recipe: Recipe) -> None:
    assert_nothing_twice(finished)
    steps, names = tiny.steps(finished), [s.name for s in tiny_recipe.stages]
    assert list(dict.fromkeys(line["stage"] for line in steps)) == names
    tokens = np.cumsum([line["batch_tokens"] for line in steps]).tolist()
    assert [line["tokens"] for line in steps] == tokens
    for stage in tiny_recipe.stages:
        own = [line for line in steps if line["stage"] == stage.name]
        assert 8 <= len(own) <= 15
        done, clock = [], 0
        for line in own:
            assert line["batch_sequences"] == stage.batch_tokens(clock) // stage.seq_len  # the ramp
            clock += line["batch_tokens"]
            assert line["lr"] == learning_rate(stage.optimizer, clock, stage.tokens)
            done.append(clock)
        assert done[-2] < stage.tokens <= done[-1]  # ends with the step that fills the budget
        assert own[-1]["loss"] < own[0]["loss"]
    assert {line["batch_sequences"] for line in steps if line["stage"] == "pretrain"} == {8, 16}
    for line in steps:
        assert np.array(line["load"]).shape == (2, 4)
        assert np.array(line["load"]).sum(axis=1) == pytest.approx([1, 1], abs=1e-6)
        assert not line["skipped"]


def test_the_last_checkpoint_of_each_stage_is_kept(finished: Path, tiny_recipe: Recipe) -> None:
    steps = tiny.steps(finished)
    ends = [max(line["step"] for line in steps if line["stage"] == s.name) for s in tiny_recipe.stages]
    kept = sorted(int(p.name.removeprefix("step_")) for p in (finished / "checkpoints").iterdir())
    assert set(ends) <= set(kept)
    assert len(kept) <= len(ends) + tiny_recipe.checkpoints.keep


def test_looks_from_outside(finished: Path) -> None:
    events = [(line["event"], line["stage"], line.get("before")) for line in tiny.lines(finished) if "event" in line]
    for stage in ("pretrain", "extend", "instruct"):
        assert events.count(("evaluation", stage, None)) == 1
        assert events.count(("sample", stage, None)) == len(watch.PROMPTS)
    assert ("loss_by_position", "extend", True) in events
    assert ("loss_by_position", "extend", False) in events
    for line in tiny.lines(finished):
        if line.get("event") == "evaluation":
            assert all(0 < bits < 20 for bits in line["bits_per_byte"].values())


def test_the_model_folder_answers(finished: Path) -> None:
    model, tokenizer = load_model(finished / "model"), Tokenizer.load(finished / "model")
    assert (model.config.context, model.config.rope_theta) == (256, 40_000.0)
    prompt = tokenizer.render_chat([{"role": "user", "content": "What is module abc?"}])
    reply = list(generate_tokens(model, prompt, SamplingSettings(max_tokens=5, stop_ids=tokenizer.stop_ids)))
    assert 1 <= len(reply) <= 5
    card = (finished / "model" / "README.md").read_text()
    assert "PSF-2.0" in card
    assert "CC0-1.0" in card


# The ledger


def test_sums_equal_the_tokens_trained(finished: Path) -> None:
    ledger = json.loads((finished / "ledger.json").read_text())
    trained = sum(line["batch_tokens"] for line in tiny.steps(finished))
    assert ledger["total"] == trained == sum(s["tokens"] for s in ledger["sources"].values())
    for source in ledger["sources"].values():
        assert source["epochs"] == source["tokens"] / source["tokens_per_epoch"] <= source["cap_epochs"]


@pytest.fixture(scope="module")
def greedy(tiny_recipe: Recipe) -> Recipe:
    """One stage that wants far more than its two sources may give: text twice, code four times."""
    batch = "stages.pretrain.batch=[{tokens=4096}]"
    return alone(tiny_recipe, "pretrain", "stages.pretrain.tokens=1_000_000_000", batch)


def test_each_source_ends_exactly_at_its_cap_also_over_a_resume(
    greedy: Recipe, tiny_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(greedy, tmp_path / "whole", data_home=tiny_home)
    whole = json.loads((tmp_path / "whole" / "ledger.json").read_text())
    assert {name: s["epochs"] for name, s in whole["sources"].items() if s["tokens"]} == {"prose": 2.0, "code": 4.0}
    assert whole["total"] == sum(line["batch_tokens"] for line in tiny.steps(tmp_path / "whole"))
    for stop_at in (4, 8):  # once between two checkpoints, once after the step that wrote another
        signal_at(stop_at, signal.SIGTERM, monkeypatch)
        assert train(greedy, tmp_path / "cut", data_home=tiny_home, resume=stop_at > 4) is None
    monkeypatch.undo()
    train(greedy, tmp_path / "cut", data_home=tiny_home, resume=True)
    assert json.loads((tmp_path / "cut" / "ledger.json").read_text()) == whole
    assert_nothing_twice(tmp_path / "cut")
    assert_same_weights(tmp_path / "cut" / "model", tmp_path / "whole" / "model")


def signal_at(step: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process a signal when it logs `step`."""
    write = metrics.MetricsLog.write

    def hooked(self: metrics.MetricsLog, line: dict[str, Any]) -> None:
        write(self, line)
        if line.get("step") == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(metrics.MetricsLog, "write", hooked)


def test_a_stage_whose_sources_are_spent_ends_at_once(greedy: Recipe, tiny_home: Path, tmp_path: Path) -> None:
    again = greedy.stages[0].model_copy(update={"name": "again"})
    recipe = greedy.model_copy(update={"stages": (greedy.stages[0], again)})
    train(recipe, tmp_path / "run", data_home=tiny_home)
    assert {line["stage"] for line in tiny.steps(tmp_path / "run")} == {"pretrain"}
    assert (tmp_path / "run" / "model" / "config.json").exists()


# Ending and going on


HOOK = """
import os
from moesaic.train import metrics
write = metrics.MetricsLog.write
def hooked(self, line):
    write(self, line)
    if line.get("step") == {step}:
        os.kill(os.getpid(), {number})
metrics.MetricsLog.write = hooked
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_ends_cleanly_and_the_run_goes_on_bit_for_bit(
    number: signal.Signals, finished: Path, tiny_recipe: Recipe, tiny_home: Path, tmp_path: Path
) -> None:
    run, step = tmp_path / "run", 5 if number == signal.SIGTERM else 14  # no multiple of 3: a save for the occasion
    shutil.copytree(tiny_home, tmp_path / "data")
    process = tiny.start_training(tiny_recipe, run, hook=HOOK.format(step=step, number=int(number)))
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert f"stopped after step {step} as asked; continue with --resume" in " ".join(output.split())
    assert "Traceback" not in output
    assert len(tiny.steps(run)) == step
    assert not (run / "model").exists()
    assert checkpoint.problem_of(run / "checkpoints" / f"step_{step:08}") is None
    train(tiny_recipe, run, resume=True)
    assert_same_weights(run / "model", finished / "model")
    assert_nothing_twice(run)
    assert [line["at_step"] for line in tiny.lines(run) if line.get("event") == "resume"] == [step]


def die(when: Callable[[dict[str, Any]], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """End the run, as if killed, right after it wrote a line for which `when` holds."""
    write = metrics.MetricsLog.write

    def hooked(self: metrics.MetricsLog, line: dict[str, Any]) -> None:
        write(self, line)
        if when(line):
            raise Killed

    monkeypatch.setattr(metrics.MetricsLog, "write", hooked)


@pytest.mark.parametrize("every_steps", [1, 3])
@pytest.mark.parametrize("event", ["evaluation", "loss_by_position", "sample"])
def test_a_death_among_the_evaluations_writes_no_event_twice(
    event: str, every_steps: int, tiny_recipe: Recipe, tiny_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when a checkpoint of the stage's last step was due just before."""
    first_two = tiny_recipe.model_copy(update={"stages": tiny_recipe.stages[:2]})
    recipe = changed(
        first_two,
        f"checkpoints.every_steps={every_steps}",
        "stages.pretrain.tokens=1500",
        "stages.extend.tokens=3000",
    )
    run = tmp_path / "run"
    die(lambda line: line.get("event") == event, monkeypatch)
    with pytest.raises(Killed):
        train(recipe, run, data_home=tiny_home)
    monkeypatch.undo()
    train(recipe, run, data_home=tiny_home, resume=True)
    assert_nothing_twice(run)
    assert sum(line.get("event") == "sample" for line in tiny.lines(run)) == 2 * len(watch.PROMPTS)


def test_a_finished_run_resumed_only_writes_its_model_again(
    finished: Path, tiny_recipe: Recipe, tiny_home: Path, tmp_path: Path
) -> None:
    run = tmp_path / "tiny"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "model")
    assert train(tiny_recipe, run, data_home=tiny_home, resume=True) == run / "model"
    assert_same_weights(run / "model", finished / "model")
    assert [line for line in tiny.lines(run) if line.get("event") != "resume"] == tiny.lines(finished)


def test_stages_one_by_one_are_the_whole_run(
    finished: Path, tiny_recipe: Recipe, tiny_home: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for i, stage in enumerate(tiny_recipe.stages):
        train(tiny_recipe, run, data_home=tiny_home, stage=stage.name, resume=i > 0)
        assert (run / "model" / "config.json").exists()
    assert_same_weights(run / "model", finished / "model")
    assert_nothing_twice(run)


def test_a_stage_before_its_turn_is_refused(tiny_recipe: Recipe, tiny_home: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'extend' follows 'pretrain', which this run has not finished"):
        train(tiny_recipe, tmp_path / "run", data_home=tiny_home, stage="extend")


def test_an_existing_run_is_not_overwritten(finished: Path, tiny_recipe: Recipe, tiny_home: Path) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="already holds a run; continue it with --resume"):
        train(tiny_recipe, finished, data_home=tiny_home)
    assert (finished / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("value", ["seed=4", "model.top_k=1", "stages.instruct.tokens=9001"])
def test_another_system_is_not_resumed(value: str, finished: Path, tiny_recipe: Recipe, tiny_home: Path) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="begun with another system"):
        train(changed(tiny_recipe, value), finished, data_home=tiny_home, resume=True)
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_what_is_not_the_system_may_change(
    finished: Path, tiny_recipe: Recipe, tiny_home: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "tiny")
    other = changed(tiny_recipe, "checkpoints.keep=5", 'about="renamed"', "hardware.count=2")
    assert train(other, tmp_path / "tiny", data_home=tiny_home, resume=True) is not None


def test_changed_data_is_not_resumed(tmp_path: Path) -> None:
    """The recipe is the same, a file behind it is not: the loader's place would mean other documents."""
    tiny.write_corpus(tmp_path / "corpus")
    recipe = alone(tiny.recipe(tmp_path / "corpus"), "instruct", "stages.instruct.tokens=2000")
    train(recipe, tmp_path / "run")
    talks = tmp_path / "corpus" / "talks.jsonl"
    talks.write_text("".join(talks.read_text().splitlines(keepends=True)[:40]))
    with pytest.raises(CheckpointError, match=r"the data changed since this run began: (prose|code|talks) holds"):
        train(recipe, tmp_path / "run", resume=True)


# Other models: to start from, and to learn from


def test_a_stage_starts_from_a_model_folder_and_trains_only_what_it_names(
    finished: Path, tiny_recipe: Recipe, tiny_home: Path, tmp_path: Path
) -> None:
    recipe = alone(
        tiny_recipe,
        "instruct",
        f'stages.instruct.init="{finished / "model"}"',
        'stages.instruct.trainable=["layers.1.*"]',
        "stages.instruct.tokens=2000",
    )
    train(recipe, tmp_path / "run", data_home=tiny_home)
    ours, theirs = tiny.tensors(tmp_path / "run" / "model"), tiny.tensors(finished / "model")
    for name, tensor in ours.items():
        frozen = not name.startswith("model.layers.1.")
        assert np.array_equal(tensor, theirs[name]) == frozen, name
    assert load_model(tmp_path / "run" / "model").config.rope_theta == 40_000.0


def test_init_of_a_later_stage_counts_also_when_the_run_is_resumed_there(
    finished: Path, tiny_recipe: Recipe, tiny_home: Path, tmp_path: Path
) -> None:
    instruct = tiny_recipe.stage("instruct").model_copy(update={"init": str(finished / "model")})
    recipe = changed(tiny_recipe.model_copy(update={"stages": (tiny_recipe.stages[0], instruct)}))
    recipe = changed(recipe, "stages.pretrain.tokens=1500", "stages.instruct.tokens=2000")
    train(recipe, tmp_path / "whole", data_home=tiny_home)
    train(recipe, tmp_path / "cut", data_home=tiny_home, stage="pretrain")
    train(recipe, tmp_path / "cut", data_home=tiny_home, resume=True)
    assert_same_weights(tmp_path / "cut" / "model", tmp_path / "whole" / "model")
    first = next(line for line in tiny.steps(tmp_path / "cut") if line["stage"] == "instruct")
    assert first["loss"] < 5.8  # where the finished model stands; a fresh one stands at 6.3


def test_a_later_stage_with_init_may_be_run_out_of_a_run_that_stopped_earlier(
    finished: Path, tiny_recipe: Recipe, tiny_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = changed(tiny_recipe, f'stages.instruct.init="{finished / "model"}"', "stages.instruct.tokens=2000")
    signal_at(4, signal.SIGTERM, monkeypatch)
    assert train(recipe, tmp_path / "run", data_home=tiny_home) is None
    monkeypatch.undo()
    assert train(recipe, tmp_path / "run", data_home=tiny_home, resume=True, stage="instruct") is not None
    assert [line["stage"] for line in tiny.steps(tmp_path / "run")] == ["pretrain"] * 4 + ["instruct"] * 3
    assert_nothing_twice(tmp_path / "run")


def test_a_model_of_another_shape_is_refused_by_name(
    finished: Path, tiny_recipe: Recipe, tiny_home: Path, tmp_path: Path
) -> None:
    init = f'stages.instruct.init="{finished / "model"}"'
    with pytest.raises(CheckpointError, match=r"d_ff = 32, the recipe says 64; set model\.d_ff"):
        train(alone(tiny_recipe, "instruct", init, "model.d_ff=64"), tmp_path / "run", data_home=tiny_home)


def test_a_teacher_is_listened_to(finished: Path, tiny_recipe: Recipe, tiny_home: Path, tmp_path: Path) -> None:
    """With the teacher as the start the divergence, and so the loss, begins at zero."""
    model = finished / "model"
    taught = [f'stages.instruct.teacher="{model}"', "stages.instruct.teacher_share=1.0", "stages.instruct.tokens=900"]
    init = f'stages.instruct.init="{model}"'
    train(alone(tiny_recipe, "instruct", init, *taught), tmp_path / "same", data_home=tiny_home)
    assert tiny.steps(tmp_path / "same")[0]["loss"] == pytest.approx(0, abs=1e-5)
    train(alone(tiny_recipe, "instruct", *taught), tmp_path / "fresh", data_home=tiny_home)
    assert tiny.steps(tmp_path / "fresh")[0]["loss"] > 0.01


def test_a_teacher_with_another_vocabulary_is_refused(
    finished: Path, tiny_recipe: Recipe, tiny_home: Path, tmp_path: Path
) -> None:
    teacher = f'stages.instruct.teacher="{finished / "model"}"'
    recipe = alone(tiny_recipe, "instruct", teacher, "model.vocab_size=520")
    with pytest.raises(CheckpointError, match=r"has 512 tokens, the model 520; a teacher must share the tokenizer"):
        train(recipe, tmp_path / "run", data_home=tmp_path / "data")


# Damage


def damage(checkpoint_folder: Path) -> None:
    file = next(checkpoint_folder.glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.fixture
def stopped(
    tiny_recipe: Recipe, tiny_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, list[Path]]:
    """A run that was stopped after step 8, and its checkpoints: those of steps 6 and 8."""
    with monkeypatch.context() as patch:
        signal_at(8, signal.SIGTERM, patch)
        assert train(tiny_recipe, tmp_path / "run", data_home=tiny_home) is None
    found = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [p.name for p in found] == ["step_00000006", "step_00000008"]
    return tmp_path / "run", found


def test_a_bf16_run_resumes_bit_for_bit_with_the_kernels_it_began_with(
    tiny_recipe: Recipe, tiny_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = alone(tiny_recipe, "pretrain", "stages.pretrain.precision=bf16")
    assert train(recipe, tmp_path / "whole", data_home=tiny_home)
    with monkeypatch.context() as patch:
        signal_at(5, signal.SIGTERM, patch)
        assert train(recipe, tmp_path / "run", data_home=tiny_home) is None
    [newest] = [p for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.endswith("5")]
    kernels, _ = choose_kernels("auto", torch.device("cpu"))
    arithmetic = json.loads((newest / "extra.json").read_text())["arithmetic"]
    assert arithmetic == f"1 threads, {kernels.name} kernels and layout of one process"
    assert train(recipe, tmp_path / "run", data_home=tiny_home, resume=True)
    assert_same_weights(tmp_path / "run" / "model", tmp_path / "whole" / "model")
    assert [s["loss"] for s in tiny.steps(tmp_path / "run")] == [s["loss"] for s in tiny.steps(tmp_path / "whole")]


def test_a_checkpoint_of_another_version_says_so(
    stopped: tuple[Path, list[Path]], tiny_recipe: Recipe, tiny_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, found = stopped
    monkeypatch.setattr(checkpoint_files, "FORMAT", checkpoint_files.FORMAT + 1)
    assert "another version of moesaic" in str(checkpoint_files.problem_of(found[0]))
    with pytest.raises(CheckpointError, match="damaged"):
        train(tiny_recipe, run, data_home=tiny_home, resume=True)
    assert sorted((run / "checkpoints").iterdir()) == found


def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(
    stopped: tuple[Path, list[Path]],
    finished: Path,
    tiny_recipe: Recipe,
    tiny_home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, (_, newest) = stopped
    damage(newest)
    train(tiny_recipe, run, data_home=tiny_home, resume=True)
    out = " ".join(capsys.readouterr().out.split())
    assert "passed over checkpoint step_00000008: __0_0.distcp does not match its checksum" in out
    assert_same_weights(run / "model", finished / "model")
    assert_nothing_twice(run)


def test_without_a_good_checkpoint_nothing_is_begun_anew(
    stopped: tuple[Path, list[Path]], tiny_recipe: Recipe, tiny_home: Path
) -> None:
    run, found = stopped
    for folder in found:
        damage(folder)
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged or of another version; restore one"):
        train(tiny_recipe, run, data_home=tiny_home, resume=True)
    assert (run / "metrics.jsonl").read_bytes() == before
    assert all(folder.exists() for folder in found)


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(
    finished: Path, tiny_recipe: Recipe, tiny_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die(lambda line: line.get("step") == 2, monkeypatch)
    with pytest.raises(Killed):
        train(tiny_recipe, tmp_path / "run", data_home=tiny_home)
    monkeypatch.undo()
    train(tiny_recipe, tmp_path / "run", data_home=tiny_home, resume=True)
    assert_same_weights(tmp_path / "run" / "model", finished / "model")
    assert_nothing_twice(tmp_path / "run")


@pytest.mark.parametrize("how", ["missing", "cut", "changed"])
def test_a_damaged_shard_stops_a_run_before_it_begins(
    how: str, tiny_recipe: Recipe, tiny_home: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_home, tmp_path / "data")
    shard = data_path(tiny_recipe, tmp_path / "data") / "train" / "code.bin"
    content = shard.read_bytes()
    shard.unlink()
    if how != "missing":
        shard.write_bytes(content[:-2] if how == "cut" else content[:-2] + b"\1\0")
    with pytest.raises(DataError, match=r"code\.bin .*; delete the data folder and run `moesaic data build` again"):
        train(tiny_recipe, tmp_path / "run", data_home=tmp_path / "data")
    assert not (tmp_path / "run" / "checkpoints").exists()


LIMIT = """
import resource
from moesaic.train import checkpoint, metrics
checkpoint._WAITS_S = (0.0,)
write = metrics.MetricsLog.write
def hooked(self, line):
    if line.get("step") in {limits}:
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limits}[line["step"]], resource.RLIM_INFINITY))
    write(self, line)
metrics.MetricsLog.write = hooked
"""


def test_a_full_disk_costs_checkpoints_and_not_the_run(
    finished: Path, tiny_recipe: Recipe, tiny_home: Path, tmp_path: Path
) -> None:
    """No file may grow over 60 kB from step 5 to step 16: two stages' saves fail, metrics still fit."""
    shutil.copytree(tiny_home, tmp_path / "data")
    process = tiny.start_training(tiny_recipe, tmp_path / "run", hook=LIMIT.format(limits={5: 60_000, 16: -1}))
    output, _ = process.communicate()
    assert process.returncode == 0, output
    said = " ".join(output.split())
    assert "checkpoint at step 6 was not saved: File too large; try 2 of 3 follows" in said
    assert "training goes on without it" in said
    assert_same_weights(tmp_path / "run" / "model", finished / "model")
    assert_nothing_twice(tmp_path / "run")
    assert not list(tmp_path.rglob("*.partial"))


def test_small_files_that_find_no_space_do_not_end_the_run(
    finished: Path, tiny_recipe: Recipe, tiny_home: Path, tmp_path: Path
) -> None:
    """Not even a byte for some steps: ledger.json fails too, metrics wait in memory."""
    shutil.copytree(tiny_home, tmp_path / "data")
    process = tiny.start_training(tiny_recipe, tmp_path / "run", hook=LIMIT.format(limits={5: 0, 8: -1}))
    output, _ = process.communicate()
    assert process.returncode == 0, output
    said = " ".join(output.split())
    assert "ledger.json was not written: File too large; the next save tries again" in said
    assert "its lines wait in memory until there is space" in said
    assert_same_weights(tmp_path / "run" / "model", finished / "model")
    assert_nothing_twice(tmp_path / "run")
    assert [line["step"] for line in tiny.steps(tmp_path / "run")] == [line["step"] for line in tiny.steps(finished)]


def test_a_run_folder_that_cannot_be_written_is_an_error(tiny_recipe: Recipe, tiny_home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"run folder .*file/run: .*; free some space or choose another place"):
        train(tiny_recipe, tmp_path / "file" / "run", data_home=tiny_home)


def test_prompts_that_do_not_fit_are_not_sampled(tiny_recipe: Recipe, tiny_home: Path, tmp_path: Path) -> None:
    """A context of 16 tokens is small, and no reason to lose the run at its end."""
    values = ("model.context=16", "stages.pretrain.seq_len=16", "stages.pretrain.tokens=1000")
    recipe = alone(tiny_recipe, "pretrain", *values)
    assert train(recipe, tmp_path / "run", data_home=tiny_home) is not None
    assert not [line for line in tiny.lines(tmp_path / "run") if line.get("event") == "sample"]
