"""The thread beside a start that reads heartbeats: who died first, who hangs, when training went on."""

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from moesaic.resilience.beats import Beat, alive, ask_stack, read_beats
from moesaic.resilience.incidents import incidents, report
from moesaic.resilience.limits import Limits
from moesaic.resilience.localise import SlowRanks, first_not_finite
from moesaic.resilience.places import waits

LOOK_S = 0.05  # between two looks
REMEMBERED = 64  # steps, for the median


class Watchdog:
    """Watches one start of `world` ranks; a context manager.

    After it ends: `gone` holds the ranks that disappeared without a word and when that was seen, `hang` a line about
    ranks that had to be ended because nothing moved, `first_step` when a step of this start began.
    """

    def __init__(
        self,
        run: Path,
        world: int,
        limits: Limits,
        on_step: Callable[[int, float], None],
        say: Callable[[str], None],
    ) -> None:
        """`on_step(step, time)` is called once, when rank 0 begins its first step; `say` tells what else is found."""
        self.run, self.world, self.limits, self.on_step, self.say = run, world, limits, on_step, say
        self._slow = SlowRanks()
        self._told = max((i["step"] for i in incidents(run, "not_finite")), default=0)
        self.gone: dict[int, float] = {}
        self.ended: dict[int, float] = {}  # ranks that failed and said so
        self.hang: str | None = None
        self.hung: list[int] = []
        self.first_step: float | None = None
        self.beats: dict[int, Beat] = {}
        self._began = time.time()
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)
        self._steps = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            self._look()
            deaths = [*self.gone.values(), *self.ended.values()]
            if deaths and time.time() - min(deaths) > self.limits.grace:
                self._end_all()
            elif not deaths and self.hang is None:
                self._find_hang()

    def _look(self) -> None:
        """Take over what the ranks say; note who is gone."""
        self.beats = read_beats(self.run)
        now = time.time()
        for rank, beat in self.beats.items():
            if beat.end == "failed":
                self.ended.setdefault(rank, beat.at)
            elif beat.end == "" and not alive(beat.pid):
                self.gone.setdefault(rank, now)
        first = self.beats.get(0)
        if first is None:
            return
        if self.first_step is None and first.first:
            self.first_step = first.first_at
            self.on_step(first.first, first.first_at)
        if first.steps > self._steps:
            self._steps = first.steps
            self._seconds.append(first.seconds)
        self._tell()

    def _tell(self) -> None:
        """Say which rank is slow, and where a gradient was not finite."""
        for slow in self._slow.look(self.beats):
            report(self.run, "slow", rank=slow.rank, seconds=slow.seconds, where=slow.place)
            self.say(str(slow))
        done = min((beat.step for beat in self.beats.values()), default=0)  # all ranks have reported earlier steps
        for step in sorted({i["step"] for i in incidents(self.run, "not_finite") if self._told < i["step"] < done}):
            self._told = step
            self.say(str(first_not_finite(self.run, step)))

    def _find_hang(self) -> None:
        """End the ranks when one has shown no sign of life for too long."""
        now = time.time()
        inside = self.limits.hang_after(self._seconds)
        late: dict[int, float] = {}
        for rank in range(self.world):
            beat = self.beats.get(rank)
            silent = now - (self._began if beat is None else beat.at)
            limit = inside if beat is not None and beat.phase in ("step", "update") else self.limits.idle
            if silent > limit and (beat is None or not beat.end):
                late[rank] = silent
        if not late:
            return
        places = {r: ask_stack(self.run, b) for r, b in sorted(self.beats.items()) if not b.end}
        lines = [f"rank {r} {self._stands(r)}" + (f", {places[r]}" if places.get(r) else "") for r in range(self.world)]
        # Those who wait for another fell silent no later than the one they wait for: what counts is who does not wait.
        self.hung = [r for r in range(self.world) if (p := places.get(r)) and not waits(p)] or list(late)
        self.hang = f"no sign of life for {max(late.values()):.0f} s: " + "; ".join(lines)
        report(self.run, "hang", ranks=self.hung, seconds=max(late.values()), where=places)
        self._end_all()

    def _stands(self, rank: int) -> str:
        beat = self.beats.get(rank)
        if beat is None:
            return "never began"
        return "before its first step" if beat.phase == "start" else f"in step {beat.step} ({beat.phase})"

    def _end_all(self) -> None:
        for beat in self.beats.values():
            if beat.end not in ("returned", "stopped"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(beat.pid, signal.SIGKILL)
