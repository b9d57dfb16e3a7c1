"""What a draft gains: speed at batch sizes 1 to 64, exact and at three leniencies, beside what its acceptance promises.

    python benchmarks/serve_speculation.py runs/pocket/model --draft runs/pocket-draft/model [--prompts FILE.jsonl]

Each batch is written without a draft and with one, in turn; the engine chooses the draft length of every step. Gain is
the ratio of tokens a second over the steps that write all answers of the batch and compute no prompt, in the median of
the rounds. Promised is what
a reader of the facts would expect of the lengths K that were used: the tokens of a step, (1 - a^(K+1)) / (1 - a) for
guesses accepted with probability a, over its cost: the check reads the experts that K+1 tokens of each answer touch,
E (1 - (1 - k/E)^(batch (K+1))) of E, the draft takes K steps of its own, timed alone.
Acceptance is measured: guesses that stood over guesses up to the first that did not.
"""

import argparse
import json
import queue
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from machine import describe, keep

from moesaic.recipe import Model
from moesaic.serve.engine import Delivery, Engine
from moesaic.serve.local import LocalModel, load
from moesaic.serve.options import Options
from moesaic.serve.record import StepRecord
from moesaic.serve.settings import EngineSettings

BATCHES = (1, 2, 4, 8, 16, 32, 64)
LENIENCIES = (0.0, 0.1, 0.25, 0.5)
PROMPTS = (
    "Once upon a time there was a",
    "The most important thing about a garden is",
    "Write a short story about a river.",
    "What is the difference between a lake and a sea?",
)


@dataclass
class Run:
    """Steps that wrote a whole batch, and what the answers took."""

    records: list[StepRecord]
    usages: list[Any]

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return sum(r.new_tokens for r in self.records) / sum(r.seconds for r in self.records)

    @property
    def step_s(self) -> float:
        """Seconds of a step in the median."""
        return statistics.median(r.seconds for r in self.records)


def write(engine: Engine, prompts: Sequence[list[int]], options: Options) -> Run:
    """All at once, to their full length. Raises RuntimeError when no step wrote them all."""
    records: list[StepRecord] = []
    engine.observers.append(records.append)
    deliveries: queue.Queue[Delivery] = queue.Queue()
    for prompt in prompts:
        engine.submit(prompt, options, deliveries.put)
    usages: list[Any] = []
    while len(usages) < len(prompts):
        one = deliveries.get()
        if one.usage is not None:
            usages.append(one.usage)
    engine.observers.remove(records.append)
    whole = [r for r in records if r.batch == len(prompts) and not r.prompt_positions]
    if not whole:
        raise RuntimeError(f"no step wrote {len(prompts)} answers at once; raise --tokens")
    return Run(whole, usages)


def touched(config: Model, tokens: float) -> float:
    """Weights of a forward over so many tokens: dense ones, and the experts that they are expected to touch."""
    expert = 3 * config.d_model * config.d_ff
    attention = 2 * config.d_model * config.head_dim * (config.n_heads + config.n_kv_heads)
    share = 1 - (1 - config.top_k / config.n_experts) ** tokens
    return config.n_layers * (attention + config.n_experts * share * expert) + config.vocab_size * config.d_model


def promised(config: Model, batch: int, run: Run, accept: float, off_s: float, draft_s: float) -> float:
    """Gain expected of the lengths that the steps of `run` had, by the formula above."""
    tokens = seconds = 0.0
    for record in run.records:
        length = record.drafted / batch
        each = length + 1 if accept == 1 else (1 - accept ** (length + 1)) / (1 - accept)
        tokens += batch * each
        seconds += off_s * touched(config, batch * (length + 1)) / touched(config, batch) + length * draft_s
    return tokens / seconds * off_s / batch


def acceptance(run: Run, batch: int) -> float:
    """Probability that a guess stands, given that those before it did: from guesses made and accepted in each step.

    Of K guesses a/(1-a) (1 - a^K) are accepted in the mean; solved for a by halving.
    """
    made = [r.drafted / batch for r in run.records]
    accepted = sum(r.accepted for r in run.records) / batch
    if not sum(made):
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(50):
        a = (low + high) / 2
        expected = sum(a * (1 - a**k) / (1 - a) for k in made)
        low, high = (a, high) if expected < accepted else (low, a)
    return low


def prompt_ids(model: LocalModel, path: Path | None, count: int) -> list[list[int]]:
    """`count` prompts, the given ones over and over."""
    rows: list[Any] = list(PROMPTS)
    if path is not None:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        rows = [row.get("messages") or row["prompt"] for row in found]
    ids = [model.encode(row) for row in rows]
    return [ids[i % len(ids)] for i in range(count)]


def main() -> None:
    """Measure, print a row for each batch size and leniency, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--draft", required=True, help="a model folder, or lookup")
    parser.add_argument("--draft-length", type=int, default=4)
    parser.add_argument("--prompts", type=Path, help="JSON lines with `prompt` or `messages`")
    parser.add_argument("--tokens", type=int, default=192, help="of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.8, help="leniency does nothing at 0")
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")], default=list(BATCHES))
    parser.add_argument("--name", default="serve_speculation", help="of the file in results/; empty for none")
    arguments = parser.parse_args()
    model = load(arguments.model)
    draft: Path | Literal["lookup"] = "lookup" if arguments.draft == "lookup" else Path(arguments.draft)
    plain = EngineSettings(prefix_cache=False)
    with_draft = EngineSettings(prefix_cache=False, draft=draft, draft_length=arguments.draft_length)
    rows = []
    print("| batch | leniency | tokens/s off | on | gain | promised | share | acceptance | length | shift a token |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for batch in arguments.batches:
        prompts = prompt_ids(model, arguments.prompts, batch)
        options = Options(temperature=arguments.temperature, max_tokens=arguments.tokens, seed=1)
        draft_s = 0.0
        if draft != "lookup":
            with Engine(load(draft), plain) as engine:
                write(engine, prompts, options)
                draft_s = write(engine, prompts, options).step_s
        for leniency in LENIENCIES:
            lenient = Options(temperature=arguments.temperature, max_tokens=arguments.tokens, seed=1, leniency=leniency)
            off, on = [], []
            with Engine(model, plain) as without, Engine(model, with_draft) as engine:
                for number in range(1 + arguments.rounds):  # the first warms up, and finds the length
                    pair = write(without, prompts, options), write(engine, prompts, lenient)
                    if number:
                        off.append(pair[0])
                        on.append(pair[1])
                why = engine.gain.reason(batch) if engine.gain is not None else ""
            row = _row(model.model.config, batch, leniency, off, on, draft_s) | {"reason": why}
            rows.append(row)
            print(
                f"| {batch} | {leniency:g} | {row['off']:.1f} | {row['on']:.1f} | {row['gain']:.2f} | "
                f"{row['promised']:.2f} | {row['gain'] / row['promised']:.2f} | {row['acceptance']:.2f} | "
                f"{row['length']:.1f} | {row['shift']:.4f} |",
                flush=True,
            )
    if arguments.name:
        asked = {key: str(value) for key, value in vars(arguments).items()}
        print(keep(arguments.name, {"machine": describe(), "asked": asked, "rows": rows}))


def _row(
    config: Model, batch: int, leniency: float, offs: list[Run], ons: list[Run], draft_s: float
) -> dict[str, float]:
    off, on = _together(offs), _together(ons)
    accept = acceptance(on, batch)
    return {
        "batch": batch,
        "leniency": leniency,
        "off": off.rate,
        "on": on.rate,
        "gain": statistics.median(b.rate / a.rate for a, b in zip(offs, ons, strict=True)),
        "promised": promised(config, batch, on, accept, off.step_s, draft_s),
        "acceptance": accept,
        "length": sum(r.drafted for r in on.records) / batch / len(on.records),
        "shift": sum(u.shift for u in on.usages) / sum(u.completion_tokens for u in on.usages),
        "lenient": sum(u.lenient for u in on.usages) / sum(u.completion_tokens for u in on.usages),
    }


def _together(runs: list[Run]) -> Run:
    return Run([r for run in runs for r in run.records], [u for run in runs for u in run.usages])


if __name__ == "__main__":
    main()
