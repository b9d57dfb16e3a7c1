"""A system of a few thousand weights on real text, for tests: trained through three stages in seconds.

Texts are modules of the interpreter's standard library, chats are questions about them. Three stages read three
sources at fixed token budgets, save every third step, and compute in fp32.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moesaic.data import IGNORE, Batch, DataFolder, build_data
from moesaic.data.batch import PADDING
from moesaic.model import Transformer, initialise
from moesaic.recipe import Model, Recipe, Stage, check_recipe
from moesaic.recipe.show import to_toml

PROSE = (
    "this",
    "abc",
    "bisect",
    "heapq",
    "keyword",
    "string",
    "textwrap",
    "types",
)  # modules; their docstrings and code
CODE = ("contextlib", "fnmatch", "glob", "reprlib", "sched", "shlex", "stat", "token")
MODEL = {
    "vocab_size": 512,
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "head_dim": 8,
    "n_kv_heads": 1,
    "d_ff": 32,
    "n_experts": 4,
    "top_k": 2,
    "context": 64,
}
OPTIMIZER = {"lr": 3e-3, "warmup_tokens": 500, "vector_factor": 2.0}


def model(seed: int = 1, **changes: Any) -> Transformer:
    """An initialised model in fp32. Weights are ten times as large as usual, so that no path is lost in another."""
    built = Transformer(Model.model_validate(MODEL | {"init_std": 0.2} | changes))
    initialise(built, seed)
    return built


def stage(**changes: Any) -> Stage:
    """A stage for tests of a single step."""
    values = {"name": "s", "sources": ["prose"], "tokens": 10_000, "seq_len": 32, "batch": [{"tokens": 128}]}
    return Stage.model_validate(values | {"precision": "fp32", "optimizer": OPTIMIZER} | changes)


def batch(rows: list[list[int]], seq_len: int, seed: int = 0, vocab_size: int = 512) -> Batch:
    """Random tokens; each row is a list of document lengths, the rest of it padding."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(len(rows), seq_len, dtype=torch.int64)
    labels, documents = torch.full_like(tokens, IGNORE), torch.full_like(tokens, PADDING)
    positions = torch.zeros_like(tokens)
    for i, lengths in enumerate(rows):
        at = 0
        for number, length in enumerate(lengths):
            document = torch.randint(4, vocab_size, (length + 1,), generator=generator)
            here = slice(at, at + length)
            tokens[i, here], labels[i, here] = document[:-1], document[1:]
            documents[i, here], positions[i, here] = number, torch.arange(length)
            at += length
    return Batch(tokens, labels, documents, positions, {"prose": sum(map(sum, rows))})


def write_corpus(folder: Path) -> None:
    """Two folders of text and a file of chats."""
    library = Path(json.__file__).parents[1]
    for name, modules in (("prose", PROSE), ("code", CODE)):
        (folder / name).mkdir(parents=True)
        for module in modules:
            # Pieces of a few hundred characters: many documents of different lengths.
            text = (library / f"{module}.py").read_text(encoding="utf-8")
            for i, piece in enumerate(text[:6000].split("\n\n")):
                if len(piece) > 40:
                    (folder / name / f"{module}-{i:02}.txt").write_text(piece, encoding="utf-8")
    with (folder / "talks.jsonl").open("w", encoding="utf-8") as file:
        for module in PROSE + CODE:
            for i in range(6):
                turns = [
                    ("user", f"What is module {module}, please, {i}?"),
                    ("assistant", f"{module} is a module of the library; I said so {i} times."),
                    ("user", "Thank you."),
                    ("assistant", f"You are welcome to {module}."),
                ]
                messages = [{"role": r, "content": c} for r, c in turns]
                file.write(json.dumps({"messages": messages}) + "\n")


def recipe(corpus: Path, **changes: Any) -> Recipe:
    """Pretrain (12 steps), extend to four times the context (8) and instruct (9), a checkpoint every third step.

    `changes` replace top-level tables; a dict is merged into the table.
    """
    sources = [
        {"name": "prose", "path": str(corpus / "prose"), "kind": "text", "epochs": 2, "licence": "PSF-2.0"},
        {"name": "code", "path": str(corpus / "code"), "kind": "text", "epochs": 4, "licence": "PSF-2.0"},
        {
            "name": "talks",
            "path": str(corpus / "talks.jsonl"),
            "kind": "chat",
            "epochs": 4,
            "licence": "CC0-1.0",
        },
    ]
    common = {"micro_batch": 4, "precision": "fp32", "optimizer": OPTIMIZER}
    tree: dict[str, Any] = {
        "name": "tiny",
        "seed": 3,
        # Balance by the last batch: one thing more that a checkpoint must hold.
        "model": MODEL | {"balance_scope": "previous_batch"},
        "data": {"sources": sources, "held_out": 0.1, "min_chars": 1, "dedup_threshold": 0.0},
        "stages": [
            {"name": "pretrain", "sources": ["prose", "code"], "tokens": 8000, "seq_len": 64, **common}
            | {"batch": [{"tokens": 512}, {"after_tokens": 2500, "tokens": 1024}]},
            {
                "name": "extend",
                "sources": ["code"],
                "tokens": 8000,
                "seq_len": 256,
                "rope_theta": 40_000.0,
                **common,
            }
            | {"batch": [{"tokens": 1024}]},
            {"name": "instruct", "sources": ["talks"], "tokens": 9000, "seq_len": 256, **common}
            | {"batch": [{"tokens": 1024}], "loss_on": "assistant"},
        ],
        "checkpoints": {"every_steps": 3},
    }
    for key, value in changes.items():
        tree[key] = tree.get(key, {}) | value if isinstance(value, dict) else value
    return check_recipe(tree, "tiny")


def data(recipe: Recipe, home: Path) -> DataFolder:
    """Shards of `recipe` under `home`."""
    return build_data(recipe, home)


TRAIN = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
{hook}
from moesaic import train
from moesaic.recipe import read_recipe
train(read_recipe(sys.argv[1]), Path(sys.argv[2]), resume=sys.argv[3] == "resume")
"""


def start_training(recipe: Recipe, run: Path, *, resume: bool = False, hook: str = "") -> "subprocess.Popen[str]":
    """`moesaic.train` in a process of its own, with one thread; `hook` is Python that runs before it."""
    run.parent.mkdir(parents=True, exist_ok=True)
    file = run.with_suffix(".toml")
    file.write_text(to_toml(recipe), encoding="utf-8")
    command = [
        sys.executable,
        "-c",
        TRAIN.format(hook=hook),
        str(file),
        str(run),
        "resume" if resume else "begin",
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def tensors(model_folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Weights of a model folder, by name."""
    from safetensors.numpy import load_file

    return load_file(model_folder / "model.safetensors")


def lines(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl that tell of the model: checkpoints and stops are the machine's."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in found if line.get("event") not in ("checkpoint", "stop")]


def saves(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl that tell of checkpoints."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in found if line.get("event") == "checkpoint"]


def steps(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl that are steps."""
    return [line for line in lines(run) if "step" in line]
