"""How a run ended on this rank, so that whoever started it knows what to do next."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Outcome:
    """The end of one start of a run. Every rank returns the same.

    `finished`: all stages are trained, `model` is the finished folder. `stopped`: a checkpoint was written because
    SIGTERM or Ctrl-C asked for it. `again`: a checkpoint was written and the run goes on from it with `world` ranks
    (a step of the batch ramp that changes the number of replicas, or a start with another number than is needed now).
    """

    kind: Literal["finished", "stopped", "again"]
    model: Path | None = None
    world: int | None = None
