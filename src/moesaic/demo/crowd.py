"""An act of the tour: sixteen chats at once on one engine, and what can be known of it afterwards.

Legend: L sparse layers, E experts.
"""

import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from moesaic.errors import ServeError
from moesaic.serve.answer import Answer
from moesaic.serve.api.totals import Price, Totals
from moesaic.serve.engine import Delivery, Engine
from moesaic.serve.local import LocalModel
from moesaic.serve.options import Options
from moesaic.serve.record import StepRecord, Usage

OPENERS = (
    "Hi there! How are you?", "What do you do for a living?", "Do you like music?", "Where did you grow up?",
    "Have you seen a good film lately?", "What is your favourite food?", "Do you have any pets?", "How was your day?",
    "Do you like to travel?", "What do you do at the weekend?", "Do you have brothers or sisters?",
    "What is the weather like?", "Can you cook?", "Do you play any sport?", "What are you reading?", "Are you tired?",
)  # fmt: skip
THEN = "Tell me more about that, please."
SHOWN = 3  # of the conversations
MOST_TOKENS = 48
PRICE = Price(0.10)  # an hour of this machine: an example, so that there is something to multiply with
WIDTH = 48  # characters of a picture
LEVELS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Turn:
    """What was answered at once."""

    texts: list[str]
    usages: list[Usage]
    steps: list[StepRecord]


def sixteen_chats(console: Console, folder: Path) -> None:
    """All begin at once; when all are answered, each asks once more, which the prefix cache shortens.

    Raises MoesaicError for a folder that has no model.
    """
    with Engine(LocalModel(folder)) as engine:
        totals, seen = Totals(PRICE), list[StepRecord]()
        engine.observers += [totals.step, seen.append]
        about = engine.description
        console.print(
            f"{about['kernels']}; memory for {about['kv_tokens']:,} tokens of keys and values", highlight=False
        )
        chats = [[{"role": "user", "content": text}] for text in OPENERS]
        turns = [_turn(engine, [engine.model.encode(chat) for chat in chats], 0, seen)]
        for chat, text in zip(chats, turns[0].texts, strict=True):
            chat += [{"role": "assistant", "content": text}, {"role": "user", "content": THEN}]
        turns.append(_turn(engine, [engine.model.encode(chat) for chat in chats], len(chats), seen))
    for chat, text in zip(chats[:SHOWN], turns[1].texts, strict=False):
        console.print()
        for message in (*chat, {"role": "assistant", "content": text}):
            console.print(f"[bold]{'you' if message['role'] == 'user' else 'model':<6}[/]", end=" ")
            console.print(message["content"], markup=False, highlight=False)
    console.print()
    for title, line in (*_told(turns), ("cost", _cost(totals))):
        console.print(f"{title:<10} {line}", markup=False, highlight=False, soft_wrap=True)


def _turn(engine: Engine, prompts: Sequence[Sequence[int]], seed: int, seen: list[StepRecord]) -> Turn:
    """Submit all at once and wait for the last. Raises ServeError when the engine gives one up."""
    model, box = engine.model, queue.Queue[Delivery]()
    options = Options(temperature=0.7, top_p=0.9, max_tokens=MOST_TOKENS, stop_ids=model.stop_ids)
    before = len(seen)
    numbers = [engine.submit(p, replace(options, seed=seed + n), box.put) for n, p in enumerate(prompts)]
    answers = {number: Answer(model.tokenizer, options) for number in numbers}
    texts, usages = dict.fromkeys(numbers, ""), dict[int, Usage]()
    while len(usages) < len(numbers):
        delivery = box.get()
        if delivery.finish == "abort":
            raise ServeError(f"the engine gave an answer up ({engine.health().reason}); please report it")
        texts[delivery.request] += answers[delivery.request].push(delivery.tokens, delivery.notes, delivery.finish).text
        if delivery.usage is not None:
            usages[delivery.request] = delivery.usage
    return Turn([texts[n] for n in numbers], [usages[n] for n in numbers], seen[before:])


def _told(turns: Sequence[Turn]) -> Iterator[tuple[str, str]]:
    """What happened, in titles and lines."""
    steps = [step for turn in turns for step in turn.steps]
    for number, turn in enumerate(turns, 1):
        batch = [step.batch for step in turn.steps]
        yield f"turn {number}", f"{bars(batch)}  at most {max(batch)} answers in a step, {len(batch)} steps"
    tokens = sum(step.new_tokens for step in steps)
    seconds = sum(max(u.ended or 0 for u in turn.usages) - min(u.arrived for u in turn.usages) for turn in turns)
    yield "speed", f"{tokens / seconds:,.0f} tokens/s: {tokens:,} written in {seconds:.2f} s, reading included"
    yield "step time", _step_time(steps)
    yield from _experts(steps)
    for number, turn in enumerate(turns, 1):
        cached, asked = sum(u.cached_tokens for u in turn.usages), sum(u.prompt_tokens for u in turn.usages)
        title = "prefixes" if number == 1 else ""
        yield title, f"turn {number}: {cached} of {asked} prompt tokens came from the prefix cache"


def bars(values: Sequence[float]) -> str:
    """Values over time as a row of blocks, the largest one full; pieces of what is too wide are shown by their mean."""
    pieces = np.array_split(np.array(values, float), min(WIDTH, len(values)))
    top = max(values) or 1
    return "".join(LEVELS[round(float(piece.mean()) / top * (len(LEVELS) - 1))] for piece in pieces)


def _step_time(steps: Sequence[StepRecord]) -> str:
    """Steps before the engine has learned anything are not predicted."""
    pairs = [(step.predicted_s, step.seconds) for step in steps if step.predicted_s is not None]
    if not pairs:
        return "there were too few steps to predict any"
    expected, actual = (1e3 * sum(pair[i] for pair in pairs) / len(pairs) for i in (0, 1))
    off = median(abs(p / a - 1) for p, a in pairs)
    return f"predicted {expected:.2f} ms, actual {actual:.2f} ms in the mean; half of the steps within {off:.0%}"


def _experts(steps: Sequence[StepRecord]) -> Iterator[tuple[str, str]]:
    """Load of the experts of each sparse layer, over all steps."""
    rows = [np.array(step.experts, np.int64) for step in steps if step.experts]
    if not rows:
        yield "experts", "none: the model is dense"
        return
    yield "experts", "tokens of each, by layer; imbalance: the hottest one's over an even share"
    load_LE: NDArray[np.int64] = np.sum(rows, axis=0)
    for layer, load_E in enumerate(load_LE):
        share_E = load_E / load_E.mean()
        hot, idle = int(share_E.argmax()), int(share_E.argmin())
        yield (
            f"{layer:>10}",
            f"{bars(load_E.tolist())}  imbalance {share_E[hot]:.2f} (expert {hot}), idlest {share_E[idle]:.2f} "
            f"(expert {idle})",
        )


def _cost(totals: Totals) -> str:
    per_1k = totals.per_1k()
    assert per_1k is not None  # there is a price, and something was read and written
    read, written = (
        np.format_float_positional(per_1k[kind], precision=2, unique=False, fractional=False)
        for kind in ("prompt", "generated")
    )
    return (
        f"${written} for 1,000 tokens written, ${read} for 1,000 read, if an hour of this machine cost "
        f"${PRICE.per_hour:.2f}.\n{'':<10} That price is an example; `moesaic serve --price` takes yours"
    )
