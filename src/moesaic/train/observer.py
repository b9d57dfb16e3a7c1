"""What happens inside a run, told as it happens: the place where heartbeats and rehearsed faults attach.

A run without an observer calls the same methods of the base class, which do nothing, so that no path through training
exists only for the watched.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from moesaic.recipe import Stage

SavePhase = Literal["copied", "written", "committed"]
"""Where a save stands: state copied into host memory, files on the disk, marker written."""


class Observer:
    """Called on every rank, in the thread that trains (`saving` after "copied": in the one that saves).

    A method may take its time or raise: training waits for the first and ends by the second.
    """

    def stage_ready(self, stage: Stage, parts: Sequence[nn.Module], optimizer: torch.optim.Optimizer) -> None:
        """A stage is about to begin or to go on: the pieces of the model on this rank are built and filled."""

    def step_begins(self, step: int) -> None:
        """Step `step` (from 1, over all stages) begins: before its data is read."""

    def gradients_ready(self, step: int) -> None:
        """All micro-batches went back through this rank; nothing is reduced over ranks yet."""

    def step_ends(self, line: Mapping[str, Any]) -> None:
        """The weights are updated; `line` is what metrics.jsonl says of the step."""

    def saving(self, step: int, phase: SavePhase) -> None:
        """A save of step `step` reached `phase` on this rank."""


class Observers(Observer):
    """Several observers as one, called in the order given."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers

    def stage_ready(self, stage: Stage, parts: Sequence[nn.Module], optimizer: torch.optim.Optimizer) -> None:
        """See `Observer`."""
        for observer in self.observers:
            observer.stage_ready(stage, parts, optimizer)

    def step_begins(self, step: int) -> None:
        """See `Observer`."""
        for observer in self.observers:
            observer.step_begins(step)

    def gradients_ready(self, step: int) -> None:
        """See `Observer`."""
        for observer in self.observers:
            observer.gradients_ready(step)

    def step_ends(self, line: Mapping[str, Any]) -> None:
        """See `Observer`."""
        for observer in self.observers:
            observer.step_ends(line)

    def saving(self, step: int, phase: SavePhase) -> None:
        """See `Observer`."""
        for observer in self.observers:
            observer.saving(step, phase)
