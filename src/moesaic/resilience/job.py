"""`moesaic.train` as the worker of a supervisor."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from moesaic.data import build_data
from moesaic.model.kernels import KernelChoice
from moesaic.recipe import Recipe
from moesaic.resilience.faults import Fault, FaultInjector
from moesaic.resilience.limits import Limits
from moesaic.resilience.outcome import Outcome
from moesaic.resilience.rank import Rank
from moesaic.resilience.supervisor import supervise
from moesaic.train.progress import ResizeNeeded, layout_for
from moesaic.train.run import train


@dataclass(frozen=True)
class Job:
    """What to train. The run folder is the supervisor's; `faults` are rehearsed on the way."""

    recipe: Recipe
    data_home: Path | None = None
    resume: bool = False
    stage: str | None = None
    sinks: Sequence[str] = ()
    kernels: KernelChoice = "auto"
    faults: tuple[Fault, ...] = ()


def supervised(recipe: Recipe, run: Path, restarts: int | None = None, **options: Any) -> Path | None:
    """Train on as many processes of this machine as the layout needs, and start them again after failures.

    `restarts`: how often without a new checkpoint in between; `options` as those of `train`. Returns the model folder,
    or None when asked to stop. Raises MoesaicError.
    """
    say = partial(print, file=sys.stderr, flush=True)
    # Here, where no watchdog takes a long build for a hang; the ranks only open it.
    build_data(recipe, options.get("data_home") or run.parent / "data", progress=say)
    limits = Limits() if restarts is None else Limits(restarts=restarts)
    world = layout_for(recipe, recipe.stages[0], 0).world
    return supervise(train_rank, Job(recipe, **options), run=run, world=world, limits=limits, say=say).model


def train_rank(rank: Rank, job: Job) -> Outcome:
    """Train on this rank; every start but the first goes on from the newest good checkpoint. Raises MoesaicError."""
    start = rank.start
    injectors = [FaultInjector(job.faults, start.run, rank.number)] if job.faults else []
    try:
        model = train(
            job.recipe,
            start.run,
            data_home=job.data_home,
            resume=job.resume or start.number > 0,
            stage=job.stage,
            sinks=job.sinks,
            kernels=job.kernels,
            observer=rank.observer(*injectors),
        )
    except ResizeNeeded as resize:
        return Outcome("again", world=resize.processes)
    return Outcome("stopped") if model is None else Outcome("finished", model)
