"""What every driver does: load, then answer one stream and many requests, timed from outside the engine.

A driver is a script of its own for an environment of its own, called `DRIVER REQUEST.json ANSWER.json`. It imports
nothing of ours; this file is beside it and needs the standard library only.

Request: `model`, `settings` (the engine's own), `one` and `many`: lists of runs, a run being a list of
`{"prompt": ids, "output": tokens}`; the first run of each list warms up and is not counted.
Answer: `version`, `load_s`, `peak_bytes`, and of each counted run `seconds` from all requests at t = 0 to the last
token, the `tokens`, and for `one` also `first_s`, the seconds of the same prompt with one new token.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Generate = Callable[[list[list[int]], list[int]], list[list[int]]]
"""Prompts and how many tokens each must get -> the tokens: greedy, whatever they are."""
Start = Callable[[str, dict[str, Any]], tuple[str, Generate]]
"""Model and settings -> version of the engine, and its function."""


def drive(start: Start) -> None:
    """The main function of a driver."""
    request = json.loads(Path(sys.argv[1]).read_text())
    begin = time.perf_counter()
    version, generate = start(request["model"], request["settings"])
    answer: dict[str, Any] = {"version": version, "load_s": time.perf_counter() - begin, "one": [], "many": []}
    for kind in ("one", "many"):
        for number, run in enumerate(request[kind]):
            row = _run(generate, run, with_first=kind == "one")
            if number:
                answer[kind].append(row)
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)  # of children it is the largest, once they have ended
    answer["peak_bytes"] = sum(resource.getrusage(kind).ru_maxrss * 1024 for kind in kinds)
    Path(sys.argv[2]).write_text(json.dumps(answer))


def _run(generate: Generate, run: list[dict[str, Any]], with_first: bool) -> dict[str, Any]:
    prompts, outputs = [ask["prompt"] for ask in run], [ask["output"] for ask in run]
    row: dict[str, Any] = {}
    if with_first:
        begin = time.perf_counter()
        generate(prompts, [1] * len(prompts))
        row["first_s"] = time.perf_counter() - begin
    begin = time.perf_counter()
    tokens = generate(prompts, outputs)
    row["seconds"] = time.perf_counter() - begin
    if [len(new) for new in tokens] != outputs:
        raise RuntimeError(f"{outputs} tokens were asked for, {[len(new) for new in tokens]} came")
    return row | {"tokens": tokens}
