"""The model that every engine serves: random weights of a stated seed, as a Hugging Face folder and as GGUF.

    python -m serve_kit.reference FOLDER        (with benchmarks/ on PYTHONPATH)

The speed of an engine does not depend on what the weights are, as long as experts share the load and answers do not
repeat one token. Nor does the tokenizer matter, as prompts are token ids; it has 32,000 entries because engines refuse
a model with fewer.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from string import ascii_lowercase

import torch
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers

from moesaic.data import Tokenizer
from moesaic.data.tokenizer import CHATML, END_OF_TEXT, SPECIALS
from moesaic.interop.export import export_model
from moesaic.interop.folder import save_model
from moesaic.model import Transformer, initialise
from moesaic.recipe import Model

CONFIG = Model(
    vocab_size=32_000,
    d_model=512,
    n_layers=12,
    n_heads=8,
    head_dim=64,
    n_kv_heads=1,
    d_ff=1024,
    n_experts=16,
    top_k=2,
    tie_embeddings=False,
    context=2048,
)
SEED = 6
# Larger embeddings than at the start of a training. With those of 0.02, answers fall into a loop of a few tokens, and
# with it the experts that they need; with larger layers instead, bf16 alone changes every answer.
EMBEDDING_SCALE = 6.0
GGUF_TYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


def make_folder(folder: Path) -> Path:
    """The model in bf16, unless it is there already."""
    if not (folder / "config.json").is_file():
        scratch = folder.with_name(folder.name + "-tokenizer")
        make_tokenizer(CONFIG.vocab_size).save(scratch, max_length=CONFIG.context)
        model = Transformer(CONFIG)
        with torch.inference_mode():
            initialise(model, SEED)
            model.embedding.mul_(EMBEDDING_SCALE)
        save_model(model, folder, tokenizer_folder=scratch, dtype=torch.bfloat16)
    return folder


def make_gguf(folder: Path, kind: str) -> Path:
    """The same weights as `FOLDER.KIND.gguf`, unless it is there already; `kind` is a key of GGUF_TYPES."""
    path = folder.with_name(f"{folder.name}.{kind}.gguf")
    if not path.is_file():
        export_model(folder, "gguf", path, GGUF_TYPES[kind])
    return path


def make_tokenizer(size: int) -> Tokenizer:
    """Byte-level BPE with invented merges: pairs of letters, then three and four, as many as there is room for."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIALS, *alphabet]
    merges = list(itertools.islice(_merges(), size - len(tokens)))
    tokens += [left + right for left, right in merges]
    core = Core(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    core.add_special_tokens(list(SPECIALS))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    assert core.get_vocab_size() == size
    return Tokenizer(core, CHATML, END_OF_TEXT, END_OF_TEXT)


def _merges() -> Iterator[tuple[str, str]]:
    space, letters = "Ġ", ascii_lowercase
    yield from itertools.product((space, *letters), letters)
    yield from ((a + b, c) for a in (space, *letters) for b in letters for c in letters)
    yield from ((space + a + b, c) for a in letters for b in letters for c in letters)


def describe(folder: Path) -> dict[str, object]:
    """What the model is, for results."""
    shape = json.loads(CONFIG.model_dump_json(exclude_defaults=True))
    return {
        "shape": shape,
        "seed": SEED,
        "embedding_scale": EMBEDDING_SCALE,
        "parameters": CONFIG.parameters(),
        "active_parameters": CONFIG.active_parameters,
        "folder": folder.name,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    print(make_folder(arguments.folder))
    for kind in GGUF_TYPES:
        print(make_gguf(arguments.folder, kind))
