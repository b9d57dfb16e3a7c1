"""The command line: every verb explains itself, mistakes are one line and exit 2, output is text or JSON."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main

from moesaic.cli import app, main
from moesaic.errors import MoesaicError


def verbs(command: Any = None, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every verb and group, as the words that call it."""
    command = command or typer.main.get_command(app)
    inner = getattr(command, "commands", {})
    return [path, *(v for name, c in inner.items() for v in verbs(c, (*path, name)))]


PLAN_VERBS = ["params", "train", "search", "serve", "failures", "compare", "audit", "validate", "fit"]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a call."""
    with pytest.raises(SystemExit) as end:
        main(words)
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def test_the_verbs_are_the_stable_ones() -> None:
    expected = ["chat", "data", "demo", "doctor", "eval", "export", "generate", "import", "recipe", "report", "train"]
    expected += ["upcycle", "plan", "verify", "drill", "serve"]
    expected += [f"plan {verb}" for verb in PLAN_VERBS]
    expected += ["bench", "bench serve", "bench latency", "bench startup"]
    expected += ["data build", "data inspect", "recipe diff", "recipe init", "recipe schema", "recipe show"]
    assert sorted(" ".join(v) for v in verbs() if v) == sorted(expected)


@pytest.mark.parametrize("verb", verbs(), ids=" ".join)
def test_help_of_every_verb_has_an_example_that_calls_it(
    verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(capsys, *verb, "--help")
    assert status == 0
    assert f"Example: {' '.join(('moesaic', *verb))}" in " ".join(out.split())


@pytest.mark.parametrize("verb", verbs(), ids=" ".join)
def test_every_option_is_explained(verb: tuple[str, ...]) -> None:
    command: Any = typer.main.get_command(app)
    for word in verb:
        command = command.commands[word]
    assert command.help
    assert [p.name for p in command.params if not p.help] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("recipe", "show", "nowhere"), "no recipe file 'nowhere'; shipped recipes:"),
        (("recipe", "show", "pocket", "--set", "model.n_kv_heads=3"), "change n_kv_heads to a divisor of 4"),
        (("recipe", "init", "nowhere"), "no shipped recipe 'nowhere'"),
        (("train", "pocket", "--data", "/nowhere"), "--data /nowhere: there is no such file or folder"),
        (("train", "pocket", "--init", "/nowhere"), "--init /nowhere: no config.json there"),
        (("data", "inspect", "pocket", "--home", "/nowhere"), "run `moesaic data build`"),
        (("chat", "/nowhere"), "no model in /nowhere"),
        (("generate", "/nowhere", "hi"), "no model in /nowhere"),
        (("generate", "x", "--batch", "in.jsonl"), "--batch and --out go together"),
        (("generate", "x", "hi", "--batch", "a", "--out", "b"), "leave PROMPT out"),
        (("report", "/nowhere"), "is not a run folder"),
        (("bench", "serve", "http://127.0.0.1:9"), "no OpenAI-compatible server answers there"),
        (("bench", "serve", "http://127.0.0.1:9", "--goodput", "itl:5"), "write metric:milliseconds"),
        (("bench", "serve", "http://127.0.0.1:9", "--percentile-metrics", "ttfb"), "known are ttft, tpot, itl, e2el"),
        (("bench", "serve", "http://127.0.0.1:9", "--metric-percentiles", "half"), "numbers from 0 to 100"),
        (("bench", "serve", "http://127.0.0.1:9", "--request-rate", "0"), "requests a second above 0"),
        (("bench", "serve", "/nowhere"), "no model in /nowhere"),
        (("bench", "latency", "/nowhere"), "no model in /nowhere"),
        (("bench", "startup", "/nowhere"), "no model in /nowhere"),
        (("bench", "startup", "x", "--num-iters-cold", "0", "--num-iters-warm", "0"), "nothing to measure"),
        (("demo", "--acts", "one"), "--acts one: give numbers"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, tuple) else "",
)
def test_mistakes_are_one_or_two_lines_and_exit_2(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *words)
    assert status == 2
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) <= 2
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_unknown_verbs_and_options_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "trian")[0] == 2
    assert run(capsys, "train", "pocket", "--fast")[0] == 2


@pytest.mark.parametrize("place", [0, 1, 3])
def test_debug_anywhere_shows_where_an_error_came_from(place: int) -> None:
    words = ["recipe", "show", "nowhere"]
    words.insert(place, "--debug")
    with pytest.raises(MoesaicError):
        main(words)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    module = ModuleType(name)
    for key, value in functions.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


def test_ctrl_c_exits_130_without_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(acts: object) -> None:
        raise KeyboardInterrupt

    stand_in(monkeypatch, "moesaic.demo", run_demo=interrupted)
    assert run(capsys, "demo") == (130, "", "")


def test_demo_passes_the_acts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    stand_in(monkeypatch, "moesaic.demo", run_demo=seen.append)
    assert run(capsys, "demo", "--acts", "1, 3")[0] == 0
    assert run(capsys, "demo")[0] == 0
    assert seen == [[1, 3], None]


def test_train_passes_everything_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[Any, ...]] = []

    def record(recipe: Any, run_folder: Path, **options: Any) -> Path:
        calls.append((recipe, run_folder, options))
        return run_folder / "model"

    monkeypatch.setattr("moesaic.train.run.train", record)
    (tmp_path / "mine.jsonl").write_text('{"messages": []}\n')
    words = ["train", "pocket", "--run", "first", "--stage", "instruct", "--resume", "--log", "wandb"]
    words += ["--data", str(tmp_path / "mine.jsonl"), "--set", "data.sources.mine.epochs=9"]
    status, out, _ = run(capsys, *words)
    assert status == 0
    assert "moesaic chat runs/first/model" in out
    recipe, folder, options = calls[0]
    assert folder == Path("runs/first")
    assert options == {"resume": True, "stage": "instruct", "sinks": ["wandb"], "kernels": "auto"}
    assert recipe.stage("instruct").sources == ("mine",)
    assert "dialogue" in recipe.stage("pretrain").sources
    assert recipe.data.sources[-1].epochs == 9
    run(capsys, "train", "pocket")
    assert calls[1][1] == Path("runs/pocket")


def test_a_stopped_training_does_not_promise_a_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moesaic.train.run.train", lambda *args, **options: None)
    assert run(capsys, "train", "pocket")[:2] == (0, "")


def test_recipe_verbs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    assert run(capsys, "recipe", "init", "pocket", "--out", str(mine))[0] == 0
    status, _, err = run(capsys, "recipe", "init", "pocket", "--out", str(mine))
    assert (status, "File exists; choose another --out" in err) == (2, True)
    assert run(capsys, "recipe", "diff", "pocket", str(mine)) == (0, "", "")
    shown = run(capsys, "recipe", "show", str(mine), "--set", "seed=77")[1]
    assert "seed = 77" in shown
    mine.write_text(shown)
    assert run(capsys, "recipe", "diff", "pocket", str(mine))[1].endswith(" -> 77\n")
    assert json.loads(run(capsys, "recipe", "diff", "pocket", str(mine), "--json")[1])[0]["path"] == "seed"
    assert json.loads(run(capsys, "recipe", "show", "pocket", "--json")[1])["name"] == "pocket"
    assert "properties" in json.loads(run(capsys, "recipe", "schema")[1])


def test_doctor_reports_as_text_and_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moesaic.doctor.gemm_peak", lambda *args: 1e11)
    monkeypatch.setattr("moesaic.doctor.WRITE_BYTES", 4 << 20)
    found = json.loads(run(capsys, "doctor", "--json")[1])
    assert found["torch"]["version"]
    assert found["memory"]["bandwidth"] > 0
    assert found["disk"]["write"] > 0
    assert found["extras"]["train"] is True
    text = run(capsys, "doctor")[1]
    assert "100 GFLOP/s in fp32" in text
    assert all(len(line) < 200 for line in text.splitlines())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import moesaic

    assert run(capsys, "--version") == (0, f"{moesaic.__version__}\n", "")
