"""How fast chats become shards, and in how much memory: the goal is 20,000 rows a second on one core, under 1 GB.

    python benchmarks/chat_rows.py [--rows 1_000_000]

Rows are made beforehand (not counted): short exchanges of a few hundred different words in the three formats in turn,
OpenAI messages, ShareGPT and Alpaca. Counted is `build_data` from the jsonl file to checked shards with the tokenizer
given, in a process of its own with one thread.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from machine import describe, keep

from moesaic.data import build_data
from moesaic.recipe import Recipe, read_recipe


def rows(count: int) -> Iterator[str]:
    """Lines of jsonl, all different, about 30 words each."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(600)]
    for number in range(count):
        question, answer = (" ".join(draw.choices(words, k=draw.randint(6, 24))) for _ in range(2))
        question = f"{question} {number}?"
        forms = (
            {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]},
            {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]},
            {"instruction": question, "input": "", "output": answer},
        )
        yield json.dumps(forms[number % 3])


def recipe(file: Path) -> Recipe:
    """The pocket recipe with nothing but the file, and a small tokenizer sample."""
    values = [
        "data.sources=[{name='rows', kind='chat', path='"
        + str(file)
        + "', licence='made', tokenizer_bytes=2_000_000}]",
        "stages=[{name='instruct', sources=['rows'], tokens=1_000_000, seq_len=256, batch=[{tokens=2048}]}]",
    ]
    return read_recipe("pocket", values)


def worker(file: Path, home: Path) -> None:
    """Build once; print seconds and peak memory."""
    began = time.perf_counter()
    build_data(recipe(file), home)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": time.perf_counter() - began, "peak_memory_mb": peak}))


def main() -> None:
    """Make the rows, build, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--worker", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(*arguments.worker)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "rows.jsonl"
        file.write_text("\n".join(rows(arguments.rows)) + "\n")
        command = [sys.executable, __file__, "--worker", str(file), str(Path(scratch) / "data")]
        one_core = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(command, env=os.environ | one_core, capture_output=True, text=True, check=True)
        result = json.loads(done.stdout)
    result |= {"rows": arguments.rows, "rows_per_second": arguments.rows / result["seconds"], "machine": describe()}
    print(json.dumps(result, indent=1))
    print(keep("chat_rows", result))


if __name__ == "__main__":
    main()
