"""One run, many faults, nobody watching: 300 seeded random faults in a small run, which must end bit-equal.

    python benchmarks/soak.py [--faults 300] [--seed 0] [--layout dp=2,ep=2] [--minutes 30] [--home runs/soak]

Every kind of fault but the NaN (which changes the run: its step is left out) strikes at random steps on random ranks:
kill -9 in the forward pass, in the backward pass, in the optimizer's step, in the middle of a save; a damaged
checkpoint; a full disk; a slow rank; a hang. The supervisor restarts. Afterwards losses, norms and weights are compared
with an undisturbed run of the same recipe, and goodput with the planner's model for the failures that happened.

A soak that is cut short (--minutes) goes on where it stopped when it is called again.
"""

import argparse
import json
import signal
import time
from collections import Counter
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

from machine import describe, keep

from moesaic.recipe import Recipe
from moesaic.resilience.drills import curve, drill_recipe, equal_runs
from moesaic.resilience.faults import ENDS_RANKS, KINDS, Fault, happened, schedule
from moesaic.resilience.incidents import incidents
from moesaic.resilience.job import Job, train_rank
from moesaic.resilience.limits import Limits
from moesaic.resilience.supervisor import Supervisor
from moesaic.train.goodput import goodput_of
from moesaic.train.metrics import read_metrics

EVERY = 5  # steps between checkpoints
STEPS_PER_FAULT = 5
LIMITS = Limits(hang=3.0, restarts=20, first_wait=0.05, longest_wait=2.0, grace=0.5)


def soak(home: Path, recipe: Recipe, faults: tuple[Fault, ...], minutes: float) -> dict[str, Any] | None:
    """Train undisturbed, then with all faults. None when the time ran out before the end."""
    whole, broken = home / "undisturbed", home / "soak"
    for run, struck in ((whole, ()), (broken, faults)):
        if (run / "model").is_dir():
            continue
        signal.alarm(max(1, round(60 * minutes)))
        began = time.perf_counter()
        job = Job(recipe, home / "data", resume=run.exists(), faults=struck)
        supervisor = Supervisor(run, LIMITS, say=lambda line: print(f"{line}", flush=True), threads=1, show=False)
        outcome = supervisor.go(train_rank, job, world=recipe.layout.world)
        signal.alarm(0)
        minutes -= (time.perf_counter() - began) / 60
        if outcome.kind != "finished":
            return None
    return result(whole, broken, recipe, faults)


def result(whole: Path, broken: Path, recipe: Recipe, faults: tuple[Fault, ...]) -> dict[str, Any]:
    """What came of it."""
    struck = happened(broken)
    recoveries = [i["seconds"] for i in incidents(broken, "recovery")]
    ledger = goodput_of(read_metrics(broken / "metrics.jsonl"), recipe)
    losses = [loss for _, loss, _ in curve(broken)]
    return {
        "faults_planned": len(faults),
        "faults_happened": len(struck),
        "by_kind": Counter(name.partition("-")[0] for name in sorted(struck)),
        "restarts": len(recoveries),
        "restarts_expected_at_least": sum(f.kind in ENDS_RANKS for f in faults) // 2,
        "steps": len(losses),
        "curve_equal": curve(broken) == curve(whole),
        "bit_equal": equal_runs(broken, whole),
        "recovery_s": {
            "median": median(recoveries), "mean": mean(recoveries), "p95": quantiles(recoveries, n=20)[-1],
            "longest": max(recoveries),
        },
        "goodput": ledger.table(),
        "undisturbed_s": goodput_of(read_metrics(whole / "metrics.jsonl"), recipe).wall,
        "loss_first_last": [losses[0], losses[-1]],
    }  # fmt: skip


def main() -> None:
    """Soak, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layout", default="dp=2,ep=2")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--home", type=Path, default=Path("runs") / "soak")
    parser.add_argument("--keep", action="store_true", help="Write benchmarks/results/soak.json.")
    given = parser.parse_args()
    recipe = drill_recipe(given.layout, steps=STEPS_PER_FAULT * given.faults, every=EVERY)
    kinds = tuple(k for k in KINDS if k != "nan")
    steps = STEPS_PER_FAULT * given.faults
    faults = schedule(given.faults, seed=given.seed, steps=steps, every=EVERY, world=recipe.layout.world, kinds=kinds)
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGTERM))
    found = soak(given.home, recipe, faults, given.minutes)
    if found is None:
        raise SystemExit(f"time ran out; call it again to go on in {given.home}")
    found |= {"seed": given.seed, "layout": given.layout, "machine": describe()}
    print(json.dumps(found, indent=1))
    if given.keep:
        print(keep("soak", found))


if __name__ == "__main__":
    main()
