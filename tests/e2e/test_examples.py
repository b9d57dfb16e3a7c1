"""Every script in examples/ runs, at a size that takes seconds, and stays under 40 lines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY_MODEL = {
    "vocab_size": 384,
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 2,
    "head_dim": 16,
    "d_ff": 32,
    "context": 64,
}


def run(script: str, *arguments: str | Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLES / script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that `train_briefly.py` made."""
    home = tmp_path_factory.mktemp("examples")
    rows = [{"text": f"Day {n}: the sea was calm, and {n * n} gulls sat on the mast of our boat."} for n in range(200)]
    (home / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    changes = [f"model.{key}={value}" for key, value in TINY_MODEL.items()]
    changes += [
        f'data.sources=[{{name="texts", path="{home / "texts.jsonl"}", epochs=2}}]',
        "data.dedup_threshold=0",
        'stages=[{name="pretrain", sources=["texts"], tokens=4096, seq_len=64, batch=[{tokens=512}]}]',
    ]
    said = run("train_briefly.py", home / "run", *changes)
    assert said.strip()
    return home / "run"


def test_train_briefly_leaves_a_model_folder(finished: Path) -> None:
    assert (finished / "model" / "model.safetensors").is_file()


def test_read_ledger(finished: Path) -> None:
    said = run("read_ledger.py", finished)
    assert "texts" in said
    assert "of 2 epochs" in said


def test_stream_chat(finished: Path) -> None:
    assert run("stream_chat.py", finished / "model", "Hello").strip()


def test_expert_load(finished: Path) -> None:
    said = run("expert_load.py", finished)
    assert said.count("layer 0") == said.count("layer 1") == 2


def test_count_parameters() -> None:
    said = run("count_parameters.py", "gpt4")
    assert "1,832,623.7 M" in said
    assert "61,440 B" in said


def test_plan_training() -> None:
    said = run("plan_training.py")
    assert "56 GB a device, fits" in said
    assert "24,960 devices" in said


def test_batch_ramp() -> None:
    last = run("batch_ramp.py", "gpt4").splitlines()[-1]
    assert "59,637,760" in last
    assert last.endswith("28.6%")


def test_route_tokens() -> None:
    said = run("route_tokens.py")
    assert "expert 0 with weight 0.731" in said  # 1 / (1 + exp(1 - 2))


def test_epoch_caps() -> None:
    assert run("epoch_caps.py").splitlines() == [
        "text: 900 of 900 documents, each seen [2] times",
        "code: 200 of 200 documents, each seen [4] times",
    ]


def test_the_shipped_settings_of_train_briefly_fit_the_pocket_recipe() -> None:
    from moesaic import read_recipe

    text = (EXAMPLES / "train_briefly.py").read_text(encoding="utf-8")
    brief = [line.strip(' ",') for line in text.splitlines() if line.strip().startswith('"stages.')]
    assert len(brief) == 3
    assert read_recipe("pocket", brief).stages[0].tokens == 100_000


def test_examples_are_short_and_all_run_here() -> None:
    tested = Path(__file__).read_text(encoding="utf-8")
    for script in EXAMPLES.glob("*.py"):
        assert len(script.read_text(encoding="utf-8").splitlines()) < 40, script.name
        assert f'run("{script.name}"' in tested, script.name


def test_mixtral_both_ways() -> None:
    assert run("mixtral_both_ways.py").count("logits equal") == 3
