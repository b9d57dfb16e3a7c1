"""Where the time of a start goes: a new process imports, opens a model and says its first token.

python -m moesaic.serve.startup MODEL STARTED        in the new process; STARTED: monotonic seconds of its birth
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moesaic.errors import ServeError
from moesaic.serve.latency import percentile

STAGES = ("python", "imports", "model", "engine", "first token")


def measure_startup(
    folder: Path, rounds: int, *, cold: bool, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Median seconds of each stage over `rounds` new processes; `cold`: the model's files are not in memory.

    Raises ServeError with the last words of a start that failed.
    """
    runs = []
    for number in range(rounds):
        if cold:
            forget(folder)
        runs.append(_start(folder))
        progress(number + 1, rounds)
    stages = {stage: percentile([run[stage] for run in runs], 50) for stage in STAGES}
    totals = [sum(run.values()) for run in runs]
    return {
        "rounds": rounds,
        "cold": cold,
        "median_s": stages,
        "total_s": {"median": percentile(totals, 50), "min": min(totals), "max": max(totals)},
    }


def forget(folder: Path) -> None:
    """Ask the system to drop the pages of a folder's files, so that they are read from the disk again."""
    if not hasattr(os, "posix_fadvise"):
        raise ServeError("this system cannot forget a file that it has read; leave --num-iters-cold at 0")
    for path in folder.iterdir():
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # what is not written yet would stay
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _start(folder: Path) -> dict[str, float]:
    words = [sys.executable, "-m", "moesaic.serve.startup", str(folder), repr(time.monotonic())]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise ServeError(f"{folder} did not start: {last}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def stages(folder: Path, started: float) -> dict[str, float]:
    """Seconds of each stage in this process, which began at `started`."""
    marks = [started, time.monotonic()]
    from moesaic.serve.engine import Engine  # torch comes with it
    from moesaic.serve.local import LocalModel
    from moesaic.serve.offline import run_batch

    marks.append(time.monotonic())
    model = LocalModel(folder)
    marks.append(time.monotonic())
    with Engine(model) as engine:
        marks.append(time.monotonic())
        run_batch(engine, [[0]], 1)
        marks.append(time.monotonic())
    return {stage: b - a for stage, a, b in zip(STAGES, marks, marks[1:], strict=False)}


def describe(found: list[dict[str, Any]]) -> str:
    """A line for each stage, a column for each kind of start."""
    heads = ["cold" if row["cold"] else "warm" for row in found]
    lines = ["".join([f"{'seconds':<14}", *(f"{head:>8}" for head in heads)])]
    for stage in STAGES:
        lines.append("".join([f"{stage:<14}", *(f"{row['median_s'][stage]:>8.2f}" for row in found)]))
    lines.append("".join([f"{'total':<14}", *(f"{row['total_s']['median']:>8.2f}" for row in found)]))
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(stages(Path(sys.argv[1]), float(sys.argv[2]))))
