"""Break a run on purpose, in every way we know, and compare it with one that was left alone.

Each drill trains the same small system on the same ranks under the supervisor. Afterwards its curve and its weights
must be those of the undisturbed run, bit for bit. Only a gradient that is not finite leaves a trace: its step is left
out on every rank alike, so the drill asks for equality up to there, for finite losses afterwards, and for the right
name of the tensor's rank.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moesaic.errors import MoesaicError
from moesaic.recipe import Recipe, check_recipe
from moesaic.recipe.overrides import with_layout
from moesaic.resilience.faults import AT_A_SAVE, ENDS_RANKS, Fault, Kind, happened
from moesaic.resilience.incidents import incidents
from moesaic.resilience.job import Job, train_rank
from moesaic.resilience.limits import Limits
from moesaic.resilience.localise import first_not_finite
from moesaic.resilience.supervisor import Supervisor
from moesaic.train.goodput import goodput_of
from moesaic.train.metrics import read_metrics

STEPS, EVERY = 24, 4
TOKENS = 256  # of a batch
HANG_S = 10.0
LAYOUT = "dp=2,ep=2"

ABOUT: dict[Kind, str] = {
    "kill_forward": "kill -9 of a rank in its forward pass",
    "kill_backward": "kill -9 of a rank in its backward pass",
    "kill_optimizer": "kill -9 of a rank as its optimizer steps",
    "kill_copied": "kill -9 of a rank when a save has copied its weights",
    "kill_written": "kill -9 of a rank when a save has written, before it is committed",
    "corrupt": "bits of a committed checkpoint flip, then rank 0 is killed",
    "full_disk": "a save finds no space",
    "slow": "a rank sleeps 0.2 s in each forward pass",
    "nan": "a number in a local gradient is not one",
    "hang": "a rank sleeps for ever in its forward pass",
}


@dataclass(frozen=True)
class Drill:
    """One fault in one run, and what came of it. Times in seconds."""

    name: Kind
    fault: Fault
    happened: bool
    equal: bool  # to the undisturbed run: losses, norms and the finished weights (nan: up to the step left out)
    named: bool  # a line named the rank that the fault struck, where there is something to name
    restarts: int
    recovery: float | None  # from the death to the first step after it
    repeated: int  # steps
    seconds: float
    said: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the fault struck, and cost only time."""
        return self.happened and self.equal and self.named and (self.restarts > 0) == (self.name in ENDS_RANKS)

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"passed": self.passed}


def drill_recipe(layout: str = LAYOUT, *, steps: int = STEPS, every: int = EVERY) -> Recipe:
    """A system of about a hundred thousand weights on the built-in prose. Raises RecipeError for the layout."""
    stage = {
        "name": "pretrain",
        "sources": ["prose"],
        "tokens": steps * TOKENS,
        "seq_len": 32,
        "batch": [{"tokens": TOKENS}],
        "micro_batch": 2,
        "precision": "fp32",
        "optimizer": {"lr": 1e-3, "warmup_tokens": 2000, "vector_factor": 2.0, "spike_factor": 0},
    }
    prose = {"name": "prose", "kind": "text", "path": "builtin:prose", "licence": "public domain"}
    tree = {
        "name": "drill",
        "seed": 3,
        "model": {
            "vocab_size": 512, "d_model": 64, "n_layers": 4, "n_heads": 4, "head_dim": 16, "n_kv_heads": 1, "d_ff": 64,
            "n_experts": 4, "top_k": 2, "context": 32, "balance_scope": "previous_batch",
        },
        "data": {"sources": [prose | {"epochs": 20, "max_bytes": 200_000}], "held_out": 0.02, "dedup_threshold": 0.0},
        "stages": [stage],
        "checkpoints": {"every_steps": every, "retries": 0},
    }  # fmt: skip
    return with_layout(check_recipe(tree, "drill"), layout)


def run_drills(
    home: Path,
    kinds: Sequence[Kind] = tuple(ABOUT),
    *,
    layout: str = LAYOUT,
    say: Callable[[str], None] = print,
) -> list[Drill]:
    """All drills under `home`, after one undisturbed run. Raises MoesaicError."""
    if unknown := [k for k in kinds if k not in ABOUT]:
        raise MoesaicError(f"there is no drill {unknown[0]!r}; choose from {', '.join(ABOUT)}")
    recipe = drill_recipe(layout)
    world = recipe.layout.world
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    say(f"undisturbed, {world} ranks ({layout})")
    whole = home / "undisturbed"
    _train(whole, Job(recipe, home / "data"), world, [])
    out = []
    for kind in kinds:
        say(f"{kind}: {ABOUT[kind]}")
        out.append(_drill(home / kind, whole, kind, Job(recipe, home / "data"), world))
        for line in out[-1].said:
            say(f"  {line}")
    return out


def fault_of(kind: Kind, world: int) -> Fault:
    """The fault of a drill: in the middle of the run, on the last rank where it may be any."""
    step = STEPS // 2 if kind in AT_A_SAVE else STEPS // 2 - 1
    return Fault(kind, step, 0 if kind == "corrupt" else world - 1)


def _drill(run: Path, whole: Path, kind: Kind, job: Job, world: int) -> Drill:
    fault = fault_of(kind, world)
    said: list[str] = []
    began = time.perf_counter()
    restarts = _train(run, Job(job.recipe, job.data_home, faults=(fault,)), world, said)
    seconds = time.perf_counter() - began
    recoveries = [i["seconds"] for i in incidents(run, "recovery")]
    metrics = read_metrics(run / "metrics.jsonl")
    repeated = sum(line.get("lost_steps", 0) for line in metrics if line.get("event") == "resume")
    equal = _equal_to_the_nan(run, whole, fault.step) if kind == "nan" else equal_runs(run, whole)
    return Drill(
        kind, fault, fault.name in happened(run), equal, _named(run, fault), restarts,
        max(recoveries) if recoveries else None, repeated, seconds, tuple(said),
    )  # fmt: skip


def _train(run: Path, job: Job, world: int, said: list[str]) -> int:
    # On a busy machine a healthy step may be silent for seconds: only who waits for a hang is impatient.
    limits = Limits(hang=HANG_S if any(f.kind == "hang" for f in job.faults) else None, first_wait=0.1)
    supervisor = Supervisor(run, limits, say=said.append, threads=1, show=False)
    supervisor.go(train_rank, job, world=world)
    return supervisor.restarts


def equal_runs(ours: Path, theirs: Path) -> bool:
    """Whether two runs took the same steps to the same weights, bit for bit."""
    return curve(ours) == curve(theirs) and _weights(ours) == _weights(theirs)


def curve(run: Path) -> list[tuple[int, float, float]]:
    """Step, loss and gradient norm of each step; JSON keeps every bit."""
    return [(s["step"], s["loss"], s["grad_norm"]) for s in read_metrics(run / "metrics.jsonl") if "step" in s]


def _equal_to_the_nan(ours: Path, theirs: Path, step: int) -> bool:
    mine, other = curve(ours), curve(theirs)
    steps = [s["step"] for s in read_metrics(ours / "metrics.jsonl") if s.get("skipped")]
    finite = all(loss is not None and math.isfinite(loss) for _, loss, _ in mine)
    same = mine[: step - 1] == other[: step - 1] and mine[step - 1][1] == other[step - 1][1]
    return same and finite and steps == [step] and len(mine) == len(other)


def _named(run: Path, fault: Fault) -> bool:
    """Whether what was reported blames the right rank."""
    found: dict[Kind, list[Any]] = {
        "slow": [i["rank"] for i in incidents(run, "slow")],
        "nan": list(first.ranks) if (first := first_not_finite(run, fault.step)) else [],
        "hang": [rank for i in incidents(run, "hang") for rank in i["ranks"]],
        "full_disk": [fault.rank],
    }
    return (found[fault.kind] if fault.kind in found else [i["rank"] for i in incidents(run, "failure")]) == [
        fault.rank
    ]


def _weights(run: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((run / "model").glob("*.safetensors"))}


def table(drills: Sequence[Drill]) -> list[str]:
    """One row per drill, for a terminal or a page."""
    head = f"{'drill':<15} {'struck':<14} {'equal':<6} {'restarts':>8} {'repeated':>8} {'recovery':>9}  "
    rows = []
    for d in drills:
        recovery = "-" if d.recovery is None else f"{d.recovery:.1f} s"
        struck = f"step {d.fault.step} rank {d.fault.rank}"
        equal = "yes" if d.equal else "NO"
        rows.append(
            f"{d.name:<15} {struck:<14} {equal:<6} {d.restarts:>8} {d.repeated:>8} {recovery:>9}  "
            f"{'ok' if d.passed else 'FAILED'}"
        )
    return [head, *rows]


def ledger_line(run: Path, recipe: Recipe) -> str:
    """Where the time of a run went."""
    return str(goodput_of(read_metrics(run / "metrics.jsonl"), recipe))


def dump(drills: Sequence[Drill]) -> str:
    """As JSON."""
    return json.dumps([d.row() for d in drills], indent=2)
