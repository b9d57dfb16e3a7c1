"""`moesaic.train` as the worker of a supervisor."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moesaic.model.kernels import KernelChoice
from moesaic.recipe import Recipe
from moesaic.resilience.faults import Fault, FaultInjector
from moesaic.resilience.outcome import Outcome
from moesaic.resilience.rank import Rank
from moesaic.train.progress import ResizeNeeded
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
