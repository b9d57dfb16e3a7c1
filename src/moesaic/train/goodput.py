"""Where the time of a run went: work that was kept, checkpoints, work lost, restarts; from metrics.jsonl alone.

A resumed run drops the lines of steps that it repeats. What they cost is carried over into the `resume` event:

    lost_steps, lost_seconds   steps that are repeated, with the saves among them
    down_seconds               from the last line before the death to this event, those of dropped resumes included
    paused_seconds             the same after a stop that was asked for, which is nobody's failure
    failures                   deaths since the last resume that stands in the file

What else the wall clock says (data, evaluation, samples) is `other`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import mean, median
from typing import Any

from moesaic.parallel.stages import micro_batches
from moesaic.plan import goodput as model
from moesaic.plan.schedule.closed import step_bubble
from moesaic.recipe import Layout, Recipe
from moesaic.train.progress import layout_for

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Goodput:
    """Seconds of a run by what they were spent on. `bubble` is predicted, and a part of `productive`."""

    productive: float
    checkpoint: float
    lost: float
    restart: float
    other: float
    bubble: float
    failures: int
    steps: int
    saves: int
    interval: float  # work between checkpoints
    save: float  # training stands still for one

    @property
    def wall(self) -> float:
        """All of it, pauses apart."""
        return self.productive + self.checkpoint + self.lost + self.restart + self.other

    @property
    def share(self) -> float:
        """Work kept, of the time that failures and checkpoints can take from it (`other` apart)."""
        total = self.wall - self.other
        return self.productive / total if total else 1.0

    @property
    def expected(self) -> float | None:
        """The same share by the planner's model, from this run's own rate of failure, save and restart times.

        Failures are counted over the time in which ranks ran: that is when they can strike. None without
        a failure or a checkpoint: then there is nothing to model.
        """
        if not self.failures or not self.saves or not self.interval:
            return None
        between = (self.productive + self.checkpoint + self.lost) / self.failures
        return float(model.goodput(self.interval, self.save, between, self.restart / self.failures))

    def table(self) -> dict[str, float | int | None]:
        """For reports: seconds, and shares of the wall clock."""
        parts = ("productive", "checkpoint", "lost", "restart", "other", "bubble")
        seconds = {f"{part}_seconds": getattr(self, part) for part in parts}
        shares = {f"{part}_share": getattr(self, part) / self.wall if self.wall else 0.0 for part in parts}
        counts = {"failures": self.failures, "steps": self.steps, "saves": self.saves}
        return seconds | shares | counts | {"goodput_share": self.share, "model_share": self.expected}

    def __str__(self) -> str:
        wall = self.wall or 1.0
        parts = [f"goodput {self.share:.1%}"]
        if self.expected is not None:
            parts.append(f"(model {self.expected:.1%})")
        parts.append(f"of {wall:.0f} s: productive {self.productive / wall:.1%}")
        if self.bubble:
            parts.append(f"(bubble, predicted, {self.bubble / wall:.1%})")
        for name in ("checkpoint", "lost", "restart", "other"):
            parts.append(f"{name} {getattr(self, name) / wall:.1%}")
        return ", ".join(parts).replace(", (", " (").replace("), of", ") of") + f"; {self.failures} failures"


def resume_event(lines: Sequence[Line], at_step: int, now: datetime) -> dict[str, Any]:
    """The event that a run writes when it goes on after `at_step`; `lines` are those of the file before they are cut.

    Write it also when a run begins anew at step 0 because it died before its first checkpoint.
    """
    dropped = [line for line in lines if place(line) > at_step]
    steps = [line for line in dropped if "step" in line]
    resumes = [line for line in dropped if line.get("event") == "resume"]
    saves = [line for line in dropped if line.get("event") == "checkpoint"]
    times = [line["time_iso"] for line in lines if "time_iso" in line]
    silent = max(0.0, (now - datetime.fromisoformat(times[-1])).total_seconds()) if times else 0.0
    begun = sum(_start_up(lines, i) for i, line in enumerate(lines) if line in resumes)
    stopped = bool(lines) and lines[-1].get("event") == "stop"
    return {
        "event": "resume",
        "at_step": at_step,
        "time_iso": now.isoformat(timespec="milliseconds"),
        "lost_steps": len(steps) + _sum(resumes, "lost_steps"),
        "lost_seconds": _sum(steps, "seconds") + _sum(saves, "blocked_seconds") + _sum(resumes, "lost_seconds"),
        "down_seconds": (0.0 if stopped else silent) + _sum(resumes, "down_seconds") + begun,
        "paused_seconds": (silent if stopped else 0.0) + _sum(resumes, "paused_seconds"),
        "failures": (0 if stopped else 1) + _sum(resumes, "failures"),
    }


def place(line: Line) -> int:
    """The step that a line belongs to."""
    return int(line.get("step", line.get("at_step", 0)))


def goodput_of(lines: Sequence[Line], recipe: Recipe | None = None) -> Goodput:
    """The ledger of a run from its metrics; `recipe` gives the layout whose bubble is predicted."""
    steps = [line for line in lines if "step" in line]
    resumes = [line for line in lines if line.get("event") == "resume"]
    saves = [line for line in lines if line.get("event") == "checkpoint"]
    productive, checkpoint = _sum(steps, "seconds"), _sum(saves, "blocked_seconds")
    lost, paused = _sum(resumes, "lost_seconds"), _sum(resumes, "paused_seconds")
    restart = _sum(resumes, "down_seconds") + sum(_start_up(lines, i) for i, e in enumerate(lines) if e in resumes)
    times = [_time(line) for line in lines if "time_iso" in line]
    # The clock starts with the first step: what came before it is told apart from nothing in the file.
    first = next((_time(line) - line["seconds"] for line in steps if "time_iso" in line), times[0] if times else 0.0)
    begun = min([first, *times[:1]])
    if resumes and not any("step" in line for line in lines[: lines.index(resumes[0])]):
        begun -= resumes[0].get("lost_seconds", 0.0) + resumes[0].get("down_seconds", 0.0)
    wall = (times[-1] - begun if times else 0.0) - paused
    known = productive + checkpoint + lost + restart
    bubbles = _bubbles(steps, recipe) if recipe else []
    gaps = [b - a for a, b in zip([0, *(place(s) for s in saves)], [place(s) for s in saves], strict=False) if b > a]
    return Goodput(
        productive=productive,
        checkpoint=checkpoint,
        lost=lost,
        restart=restart,
        other=max(0.0, wall - known),
        bubble=math.fsum(bubbles),
        failures=sum(int(line.get("failures", 1)) for line in resumes),
        steps=len(steps),
        saves=len(saves),
        interval=median(gaps) * mean(s["seconds"] for s in steps) if gaps and steps else 0.0,
        save=mean(s.get("blocked_seconds", 0.0) for s in saves) if saves else 0.0,
    )


def _start_up(lines: Sequence[Line], at: int) -> float:
    """From a resume event to the beginning of the first step after it."""
    for line in lines[at + 1 :]:
        if "step" in line and "time_iso" in line:
            seconds: float = line["seconds"]
            return max(0.0, _time(line) - seconds - _time(lines[at]))
        if line.get("event") == "resume":
            break
    return 0.0


def _bubbles(steps: Sequence[Line], recipe: Recipe) -> list[float]:
    """Predicted seconds of each step, in the layout that its batch was computed in."""
    done: dict[str, int] = {}  # tokens of each stage, the clock of its ramp
    out = []
    for line in steps:
        name = line["stage"]
        stage = next(s for s in recipe.stages if s.name == name)
        layout = layout_for(recipe, stage, done.get(name, 0))
        done[name] = done.get(name, 0) + line["batch_tokens"]
        out.append(line["seconds"] * _bubble(layout, math.ceil(line["batch_sequences"] / layout.dp), stage.micro_batch))
    return out


def _bubble(layout: Layout, rows: int, largest: int) -> float:
    """Share of a step, of `rows` sequences of a replica in micro-batches of at most `largest`."""
    if layout.pp == 1:
        return 0.0
    _, count = micro_batches(layout, rows, largest)
    kind = "zbv" if layout.schedule == "zero_bubble" else layout.schedule
    return step_bubble(kind, layout.pp, count, layout.chunks_per_rank)


def _time(line: Line) -> float:
    moment: str = line["time_iso"]
    return datetime.fromisoformat(moment).timestamp()


def _sum(lines: Sequence[Line], key: str) -> Any:
    return sum(line.get(key) or 0 for line in lines)
