"""The commands of docs/your-data.md, as they stand there, with fewer tokens and a smaller model from nothing."""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from moesaic.recipe import read_recipe

PAGE = Path(__file__).parents[2] / "docs" / "your-data.md"
WORDS = ("sea", "calm", "crew", "small", "boat", "told", "each", "other", "long", "stories", "about", "home")
SMALLER = [
    "model.vocab_size=384",
    "model.d_model=32",
    "model.n_layers=1",
    "model.n_heads=2",
    "model.head_dim=16",
    "model.d_ff=32",
    "model.context=64",
    "stages.instruct.seq_len=256",
    "stages.instruct.tokens=2048",
    "stages.instruct.batch=[{tokens=512}]",
]
SMALLER_TEXT = [
    "stages.pretrain.seq_len=64",
    "stages.pretrain.tokens=4096",
    "stages.pretrain.batch=[{tokens=512}]",
    "stages.extend.seq_len=256",
    "stages.extend.tokens=2048",
    "stages.extend.batch=[{tokens=512}]",
]


def commands(block: int) -> list[list[str]]:
    """Lines of a block of the page: 0 tunes SmolLM2, 1 trains from nothing."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line) for line in blocks[block].splitlines()]


def run(command: list[str], place: Path) -> str:
    """What a command of the page prints."""
    assert command[0] == "moesaic"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        command,
        cwd=place,
        env=environment,
        input="Hello\n/quit\n",
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def sentence(number: int) -> str:
    return " ".join(WORDS[(number * (i + 3) + i * i) % len(WORDS)] for i in range(12)) + f" {number}."


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with the user's files, and a small wheel in place of the recipe's dialogue."""
    texts = tmp_path / "my-texts"
    texts.mkdir()
    for n in range(60):
        (texts / f"{n}.md").write_text("\n".join(sentence(20 * n + i) for i in range(20)), encoding="utf-8")
    (texts / "photo.txt").write_bytes(b"\xff\xd8\x00\x01")  # passed over, not fatal
    chats = [
        [{"role": "user", "content": sentence(n)}, {"role": "assistant", "content": sentence(n + 1)}] for n in range(60)
    ]
    rows = [json.dumps({"messages": m}) for m in chats]
    (tmp_path / "my-chats.jsonl").write_text("\n".join(rows), encoding="utf-8")
    packages = tmp_path / "runs" / "data" / "packages"
    packages.mkdir(parents=True)
    with zipfile.ZipFile(packages / "small_chats-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("small_chats/rows.jsonl", "\n".join(rows))
    return tmp_path


def test_three_commands_train_on_your_folder_and_chats(workplace: Path) -> None:
    [wheel] = (workplace / "runs" / "data" / "packages").iterdir()
    dialogue = [
        "data.sources.dialogue.package=small-chats==1.0",
        "data.sources.dialogue.format=messages",
        f"data.sources.dialogue.sha256={hashlib.sha256(wheel.read_bytes()).hexdigest()}",
    ]
    smaller = {"mine": SMALLER + SMALLER_TEXT + dialogue, "mine-chats": SMALLER}
    said = []
    for command in commands(1):
        if command[1] == "train":
            for value in smaller[command[command.index("--run") + 1]]:
                command += ["--set", value]
        said.append(run(command, workplace))
    assert said[-1].strip()  # an answer, whatever such a small model says

    learned = read_recipe(workplace / "runs" / "mine" / "recipe.toml")
    assert {s.name for s in learned.data.sources} == {"my-texts", "dialogue"}
    tuned = read_recipe(workplace / "runs" / "mine-chats" / "recipe.toml")
    assert [s.name for s in tuned.stages] == ["instruct"]
    assert [s.name for s in tuned.data.sources] == ["my-chats"]
    ledger = json.loads((workplace / "runs" / "mine" / "ledger.json").read_text(encoding="utf-8"))
    assert ledger["sources"]["my-texts"]["tokens"] > 0
    assert ledger["sources"]["my-texts"]["cap_epochs"] == 4


def test_three_commands_tune_smollm2_on_a_thousand_chats(smollm2_package: Path, tmp_path: Path) -> None:
    """The weights are the real ones; two steps of training instead of fifty."""
    rows = [
        [{"role": "user", "content": f"What is my number {n}?"}, {"role": "assistant", "content": f"It is {7 * n}."}]
        for n in range(1000)
    ]
    lines = "\n".join(json.dumps({"messages": m}) for m in rows)
    (tmp_path / "my-chats.jsonl").write_text(lines, encoding="utf-8")
    packages = tmp_path / "runs" / "data" / "packages"
    packages.mkdir(parents=True)
    (packages / smollm2_package.name).symlink_to(smollm2_package)
    shorter = ["--set", "stages.tune.tokens=4096", "--set", "stages.tune.batch=[{tokens=2048}]"]
    load, tune, chat = commands(0)
    run(load, tmp_path)
    run(tune + shorter, tmp_path)
    assert run([*chat, "--temperature", "0", "--max-tokens", "8"], tmp_path).strip()

    tuned = read_recipe(tmp_path / "runs/tuned/recipe.toml")
    assert [s.name for s in tuned.data.sources] == ["my-chats"]
    steps = [json.loads(line) for line in (tmp_path / "runs/tuned/metrics.jsonl").read_text().splitlines()]
    losses = [s["loss"] for s in steps if "step" in s]
    assert losses[-1] < losses[0] < 5  # nats: it could talk before; from nothing it would be ln 49,152 = 10.8
    config = json.loads((tmp_path / "runs/tuned/model/config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["num_hidden_layers"] == 30


def test_the_formats_on_the_page_are_read() -> None:
    from moesaic.data.chat import read_row, row_format

    block = re.search(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    rows = [json.loads(line) for line in block[1].splitlines()]
    forms = [row_format(row) for row in rows]
    assert forms == ["messages", "sharegpt", "alpaca"]
    for row, form in zip(rows, forms, strict=True):
        assert form is not None
        assert [m["role"] for m in read_row(row, form)] == ["user", "assistant"]
