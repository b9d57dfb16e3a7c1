"""Which rank is slow, and in which rank and tensor a gradient was first not finite.

Both look from outside at what any layout does anyway: no collective is added, so watching cannot make a run hang.
"""

import math
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.parallel.private import local
from moesaic.recipe import Stage
from moesaic.resilience.beats import Beat
from moesaic.resilience.incidents import incidents, report
from moesaic.resilience.places import BRIDGES, waits
from moesaic.resilience.reductions import WatchedReduction, watch_reductions
from moesaic.train.observer import Observer

SAMPLE_S = 0.005
COST = 0.01  # share of a step that a look at all gradients may take to be made in every step
TRIALS = 3  # steps in which that is measured
ARMED = 100  # steps for which a costly look is made after a gradient was not finite
NAMED = 8  # tensors in a report
WINDOW, OFTEN = 6, 5  # a rank is slow when it was in so many of its last steps
LONGER, LONGER_S = 0.5, 0.1  # than the median of the others, as a share and in seconds


class WorkClock:
    """How long the main thread worked and how long it waited for other ranks, by looking at it every 5 ms.

    Where collectives block the host (gloo), the innermost Python frame tells: in a collective or not. Backward passes
    written in C++ have no frame; there the kernel tells whether the thread sleeps. Time in which this rank was kept
    from a core counts as work: to the others it is just that. On a GPU the host runs ahead of its device, and these
    figures say little.
    """

    def __init__(self) -> None:
        self._thread_id = threading.get_ident()
        self._state = Path(f"/proc/self/task/{threading.get_native_id()}/stat")
        self._lock = threading.Lock()
        self._working = 0.0
        self._places: Counter[str] = Counter()
        threading.Thread(target=self._sample, daemon=True).start()

    def take(self) -> tuple[float, str]:
        """Seconds worked since the last call, and where most of them were spent."""
        with self._lock:
            working, places = self._working, self._places
            self._working, self._places = 0.0, Counter()
        return working, places.most_common(1)[0][0] if places else ""

    def _sample(self) -> None:
        before = time.perf_counter()
        while True:
            time.sleep(SAMPLE_S)
            now = time.perf_counter()
            frame = sys._current_frames().get(self._thread_id)
            if frame is None:
                return
            while Path(frame.f_code.co_filename).name in BRIDGES and frame.f_back is not None:
                frame = frame.f_back
            code = frame.f_code
            file = Path(code.co_filename).name
            in_cpp = code.co_name == "_engine_run_backward"
            if not (waits(f"{file}:0 {code.co_name}") or (in_cpp and self._sleeps())):
                with self._lock:
                    self._working += now - before
                    self._places[f"{file}:{frame.f_lineno} {code.co_name}"] += 1
            before = now

    def _sleeps(self) -> bool:
        """Whether the kernel has nothing to run for the main thread; False where it cannot be asked."""
        try:
            return self._state.read_bytes().rpartition(b")")[2].split()[0] == b"S"
        except OSError:
            return False


@dataclass(frozen=True)
class Slow:
    """A rank that works longer than the others."""

    rank: int
    seconds: float  # more per step than the median of the others
    place: str

    def __str__(self) -> str:
        return f"rank {self.rank} is slow: {self.seconds:.2f} s more per step than the others, in {self.place}"


class SlowRanks:
    """Compares the working seconds of ranks, step by step."""

    def __init__(self) -> None:
        self._steps: dict[int, int] = {}
        self._last: dict[int, deque[float]] = {}
        self._named: set[int] = set()

    def look(self, beats: Mapping[int, Beat]) -> list[Slow]:
        """Ranks that turn out to be slow now; each is named once until it is as fast as the others again."""
        seconds = {r: b.working for r, b in beats.items() if b.working is not None}
        if len(seconds) < 2 or len(seconds) < len(beats):
            return []
        out = []
        for rank, beat in beats.items():
            if beat.steps == self._steps.get(rank) or beat.steps < 2:  # the first step is slow everywhere
                continue
            self._steps[rank] = beat.steps
            usual = median(s for r, s in seconds.items() if r != rank and s is not None)
            more = (beat.working or 0.0) - usual
            window = self._last.setdefault(rank, deque(maxlen=WINDOW))
            window.append(more if more > max(LONGER_S, LONGER * usual) else 0.0)
            often = sum(m > 0 for m in window)
            if often >= OFTEN and rank not in self._named:
                self._named.add(rank)
                out.append(Slow(rank, median(m for m in window if m > 0), beat.busy_in))
            elif often == 0:
                self._named.discard(rank)
        return out


class GradientWatch(Observer):
    """Remembers the norm of each local gradient, and tells when the whole turned out not finite.

    Where gradients are reduced in the backward pass itself (FSDP2), a local gradient is a piece of a sum over ranks:
    it tells the tensor but not the rank. There what goes into each reduction is looked at as well.
    """

    def __init__(self, run: Path, rank: int, always: bool = False) -> None:
        """`always`: look at every step, whatever it costs, as a rehearsal must."""
        self.run, self.rank, self._always = run, rank, always
        self._named: list[tuple[str, nn.Parameter]] = []
        self._reductions: list[WatchedReduction] = []
        self._seen: list[tuple[str, Tensor]] = []
        self._trials: list[float] = []
        self._took = 0.0
        self._cheap = False
        self._armed = 0

    def stage_ready(self, stage: Stage, parts: Sequence[nn.Module], optimizer: torch.optim.Optimizer) -> None:
        """See `Observer`."""
        self._named = [(n, p) for part in parts for n, p in part.named_parameters() if p.requires_grad]
        self._reductions = watch_reductions(parts)
        self._trials, self._cheap = [], False

    def step_begins(self, step: int) -> None:
        """See `Observer`."""
        for reduction in self._reductions:
            reduction.begin(self._looks)

    @property
    def _looks(self) -> bool:
        return self._always or len(self._trials) < TRIALS or self._cheap or self._armed > 0

    def gradients_ready(self, step: int) -> None:
        """See `Observer`. Nothing is read back from the device here, except while the cost is being measured."""
        self._seen = []
        if not self._looks:
            return
        began = time.perf_counter()
        there = [(n, local(p.grad)) for n, p in self._named if p.grad is not None]
        there = [(n, g) for n, g in there if g.numel()]  # with more replicas than rows, some hold no piece
        if there:
            norms = torch._foreach_norm([g for _, g in there], math.inf)
            self._seen = [(n, norm) for (n, _), norm in zip(there, norms, strict=True)]
            if len(self._trials) < TRIALS:
                norms[-1].item()
        self._took = time.perf_counter() - began + sum(r.took for r in self._reductions)

    def step_ends(self, line: Mapping[str, Any]) -> None:
        """See `Observer`."""
        if len(self._trials) < TRIALS:
            self._trials.append(self._took / max(line["seconds"], 1e-9))
            self._cheap = len(self._trials) == TRIALS and min(self._trials) <= COST
        self._armed = max(0, self._armed - 1)
        norm = line["grad_norm"]
        if norm is not None and math.isfinite(norm):
            return
        self._armed = ARMED
        modules = [r.name for r in self._reductions if not r.finite()]
        bad = [n for n, v in self._seen if not math.isfinite(v.item())]
        loss = line.get("loss")
        report(
            self.run, "not_finite", step=line["step"], rank=self.rank, looked=bool(self._seen), count=len(bad),
            tensors=sorted(bad, key=backward_order)[:NAMED], modules=modules,
            loss_finite=loss is not None and math.isfinite(loss),
        )  # fmt: skip


@dataclass(frozen=True)
class NotFinite:
    """Where the backward pass of a step first met a number that is not finite."""

    step: int
    ranks: tuple[int, ...]
    tensor: str | None  # None: nobody looked, or every local gradient was finite
    loss_finite: bool

    def __str__(self) -> str:
        who = f"rank{'s' if len(self.ranks) > 1 else ''} {', '.join(map(str, self.ranks))}"
        if self.tensor is None:
            return f"step {self.step}: the gradient is not finite, no rank saw where; the next steps are watched"
        where = f"first in {self.tensor} on {who}"
        forward = "" if self.loss_finite else "; the loss is not finite either, so it began in the forward pass"
        return f"step {self.step}: the gradient is not finite, {where}{forward}"


def first_not_finite(run: Path, step: int) -> NotFinite | None:
    """What all ranks' reports of a step say together: the tensor nearest to the loss, and who has it so."""
    reports = [i for i in incidents(run, "not_finite") if i["step"] == step]
    if not reports:
        return None
    finite = all(i["loss_finite"] for i in reports)
    named = [i["tensors"][0] for i in reports if i["tensors"]]
    if not named:
        return NotFinite(step, (), None, finite)
    first = min(named, key=backward_order)
    ranks = {i["rank"] for i in reports if first in i["tensors"]}
    contributed = {i["rank"] for i in reports for m in i["modules"] if first.startswith(f"{m}." if m else "")}
    return NotFinite(step, tuple(sorted(contributed or ranks)), first, finite)


def backward_order(name: str) -> tuple[int, int]:
    """Sorts weights by when the backward pass reaches them: head and norm, the layers from the last, embedding."""
    words = name.split(".")
    if words[0] == "layers":
        return (1 - int(words[1]), _inside(words[2:]))
    return (2, 0) if words[0] == "embedding" else (-sys.maxsize, 0)


def _inside(words: Iterable[str]) -> int:
    """Within a layer: experts and router come before attention."""
    return 1 if any("attention" in word for word in words) else 0
