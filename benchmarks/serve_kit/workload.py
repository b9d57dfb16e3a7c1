"""The requests: one committed file of seeds and lengths, and the rule that makes token ids of them.

    python -m serve_kit.workload        writes benchmarks/data/serve_requests.jsonl again

Each line is `{"seed": .., "input": .., "output": ..}`. The prompt of a line is `input` numbers of
`random.Random(seed).randrange(FIRST, vocabulary)`, one after the other: the same in every Python, ours and a peer's.
Ids below FIRST are special tokens and bytes.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).parents[1] / "data" / "serve_requests.jsonl"
FIRST = 260
COUNT, INPUT, OUTPUT, SEED = 64, (100, 512), (64, 256), 20
ONE_INPUT, ONE_OUTPUT = 128, 256  # of the single stream


@dataclass(frozen=True)
class Ask:
    """A prompt, and how many tokens must follow it."""

    prompt: list[int]
    output: int


def prompt_ids(seed: int, length: int, vocabulary: int) -> list[int]:
    """Token ids of a prompt."""
    draw = random.Random(seed)
    return [draw.randrange(FIRST, vocabulary) for _ in range(length)]


def many(vocabulary: int, count: int = COUNT) -> list[Ask]:
    """The committed requests, or the first of them."""
    rows = [json.loads(line) for line in FILE.read_text().splitlines()]
    return [Ask(prompt_ids(r["seed"], r["input"], vocabulary), r["output"]) for r in rows[:count]]


def one(vocabulary: int, repeat: int) -> Ask:
    """A single request; each repeat has a prompt of its own, so that no prefix is there already."""
    return Ask(prompt_ids(1000 + repeat, ONE_INPUT, vocabulary), ONE_OUTPUT)


def write() -> None:
    """Draw the lengths again."""
    draw = random.Random(SEED)
    rows = [{"seed": i, "input": draw.randint(*INPUT), "output": draw.randint(*OUTPUT)} for i in range(COUNT)]
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    write()
