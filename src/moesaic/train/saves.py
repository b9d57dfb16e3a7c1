"""The checkpoints of a run: when one is due, what goes into it, what it cost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from moesaic.parallel.world import World
from moesaic.recipe import Checkpoints
from moesaic.train.checkpoint import CheckpointStore
from moesaic.train.metrics import MetricsLog
from moesaic.train.observer import Observer
from moesaic.train.timing import SaveClock


class Saves:
    """Writes checkpoints behind training and keeps their events. Every rank makes every call."""

    def __init__(
        self, folder: Path, settings: Checkpoints, world: World, log: MetricsLog, say: Callable[[str], None],
        observer: Observer,
    ) -> None:  # fmt: skip
        self.settings, self.world, self.log, self.say = settings, world, log, say
        self.store = CheckpointStore(folder, settings.keep, settings.retries, say, observer.saving)  # type: ignore[arg-type]
        self.clock = SaveClock(settings)

    def save(
        self, step: int, stage: str, state: dict[str, Any], values: dict[str, Any], *, pin: bool, now: bool
    ) -> bool:
        """Save `step`: behind training or, with `now`, before this returns. False, after warnings, when that failed.

        Behind training, weights must not change before `store.wait_copied`.
        """
        if not self.world.on_first(self.log.flush):  # a checkpoint must not outlive the lines of its steps
            self.say(f"step {step} is not saved while its lines cannot be written")
            return False
        background = self.settings.background and not now
        saved = self.store.save(step, state, values, pin=pin, background=background, overlap=background)
        self.clock.saved(step)
        self.report(stage)
        return saved

    def report(self, stage: str) -> None:
        """Write an event for each save that has ended."""
        for report in self.store.reports():
            self.clock.measured(report.blocked_seconds)
            self.log.write(
                {
                    "event": "checkpoint",
                    "stage": stage,
                    "at_step": report.step,
                    "committed": report.committed,
                    "blocked_seconds": report.blocked_seconds,
                    "seconds": report.seconds,
                    "bytes": report.bytes,
                }
            )

    def finish(self, stage: str) -> None:
        """Wait for the save under way."""
        self.store.wait()
        self.report(stage)
