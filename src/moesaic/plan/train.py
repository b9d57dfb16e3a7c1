"""A question about training, and the layout that answers it: what is given stays, the rest is chosen."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from moesaic.errors import PlanError
from moesaic.plan.device import Device
from moesaic.plan.estimate import Estimate, estimate
from moesaic.plan.job import Job
from moesaic.plan.layouts import RECOMPUTE, Layouts, valid
from moesaic.plan.shape import Shape
from moesaic.plan.stack import Stack
from moesaic.plan.workload import GRADIENT_BYTES, micro_batches, workload

if TYPE_CHECKING:
    from moesaic.recipe import Recipe


TENSOR = (1, 2, 4, 8)
CHUNKS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24)
GIVEN, OF_RECIPE, CHOSEN = "given", "the recipe's layout", "the fastest that fits"


@dataclass(frozen=True)
class Wanted:
    """What a user asks for. None leaves the choice to the recipe, and where there is none, to the planner."""

    gpus: int
    tp: int | None = None
    pp: int | None = None
    cp: int | None = None
    ep: int | None = None
    etp: int | None = None
    micro_batch: int | None = None
    interleave: int | None = None
    zero: int | None = None
    recompute: str | None = None
    gradients: Literal["bf16", "fp32"] | None = None
    seq_len: int | None = None
    tokens: float | None = None
    batch_tokens: float | None = None
    precision: str = "bf16"
    imbalance: float = 1.0
    zero_bubble: bool = False


@dataclass(frozen=True)
class Asked:
    """A question made whole: the run, and every layout that agrees with it."""

    shape: Shape
    device: Device
    stack: Stack
    job: Job  # with the gradients asked for, or fp32
    tokens: float
    batch_tokens: float
    layouts: Layouts
    wanted: Wanted
    origin: Mapping[str, str]  # of each degree: GIVEN, OF_RECIPE or CHOSEN


def ask(shape: Shape, recipe: Recipe | None, device: Device, stack: Stack, wanted: Wanted) -> Asked:
    """The question in full. Raises PlanError for a layout that cannot be, with the rule and the nearest numbers."""
    device.must_train(wanted.precision)
    if wanted.zero == 2:
        raise PlanError("ZeRO-2 shards gradients, which then must be exchanged for each micro-batch; use --zero 1 or 3")
    if wanted.zero_bubble and wanted.interleave is not None:
        raise PlanError("--interleave and --zero-bubble are two schedules; give one of them")
    stage = recipe.stages[0] if recipe else None
    work = workload(shape, recipe, wanted.seq_len, wanted.tokens, wanted.batch_tokens)
    batch = work.batch
    of_recipe = dict(recipe.layout) | {"micro_batch": stage.micro_batch} if recipe and stage else {}
    origin: dict[str, str] = {}

    def choices(name: str, otherwise: Sequence[int]) -> Sequence[int]:
        value = getattr(wanted, name)
        origin[name] = CHOSEN if value is None else GIVEN
        if value is None and name in of_recipe:
            origin[name], value = OF_RECIPE, of_recipe[name]
        return otherwise if value is None else (int(value),)

    degrees = {
        "tp": choices("tp", [n for n in TENSOR if n <= device.domain]),
        "pp": choices("pp", [n for n in range(1, shape.n_layers + 1) if shape.n_layers % n == 0]),
        "cp": choices("cp", (1,)),
        "ep": choices("ep", [n for n in range(1, shape.n_experts + 1) if shape.n_experts % n == 0]),
        "zero": choices("zero", (1, 3)),
        "chunks": (1,) if wanted.zero_bubble else choices("interleave", CHUNKS),
        "recompute": range(3) if wanted.recompute is None else (RECOMPUTE.index(wanted.recompute),),
        "micro_batch": choices("micro_batch", micro_batches(work.seq_len)),
        "split": (0, 1) if wanted.etp is None else (2,),  # of an expert: whole, as dense blocks, as given
    }
    mesh = np.meshgrid(*degrees.values(), indexing="ij")
    grid = {name: array.ravel() for name, array in zip(degrees, mesh, strict=True)}
    split = grid.pop("split")
    inner = grid["tp"] * grid["pp"] * grid["cp"]
    if (inner > wanted.gpus).all():
        raise PlanError(_too_few(int(inner.min()), wanted.gpus, origin))
    etp = np.select([split == 0, split == 1], [1, grid["tp"]], wanted.etp or 1)
    # As many replicas as there are devices for, whole groups of experts each.
    dp, group = wanted.gpus // inner, grid["ep"] * etp
    group = group // np.gcd(group, grid["cp"] * grid["tp"])
    layouts = Layouts.of(**grid, dp=np.where(dp >= group, dp // group * group, dp), etp=etp)
    layouts = layouts[(inner <= wanted.gpus) & ((layouts.ep > 1) | (etp == layouts.tp))]
    ok = valid(shape, layouts, batch)
    if not ok.any():
        raise PlanError(_rule(shape, layouts, batch, device, origin))
    width = GRADIENT_BYTES[wanted.gradients or "fp32"]
    job = Job(work.seq_len, batch, wanted.precision, width, imbalance=wanted.imbalance, zero_bubble=wanted.zero_bubble)
    for name, value in (("recompute", wanted.recompute), ("etp", wanted.etp), ("gradient_bytes", wanted.gradients)):
        origin[name] = CHOSEN if value is None else GIVEN
    return Asked(shape, device, stack, job, work.tokens, work.batch_tokens, layouts[ok], wanted, origin)


def answer(asked: Asked) -> Estimate:
    """The layout that trains fastest among those that fit, gradients in fp32 if they may be; else the smallest."""
    found = estimate(asked.shape, asked.job, asked.device, asked.stack, asked.layouts)
    if found.fits or asked.wanted.gradients is not None:
        return found
    job = replace(asked.job, gradient_bytes=2)
    smaller = estimate(asked.shape, job, asked.device, asked.stack, asked.layouts)
    return smaller if smaller.fits else found


def _too_few(inner: int, gpus: int, origin: Mapping[str, str]) -> str:
    """That one replica needs more devices than there are, and what to change."""
    fixed = [name for name in ("tp", "pp", "cp") if origin[name] == OF_RECIPE]
    rule = f"tp x pp x cp = {inner:,} needs more than {gpus:,} devices"
    if GIVEN in (origin["tp"], origin["pp"], origin["cp"]) or not fixed:
        return f"{rule}; lower one of them, or give --gpus {inner}"
    options = " ".join(f"--{name} N" for name in fixed)
    return (
        f"{rule}: {', '.join(fixed)} are the recipe's layout; give {options} of your own, --gpus {inner} or more, "
        "or let `moesaic plan search` choose"
    )


def _rule(shape: Shape, layouts: Layouts, batch: int, device: Device, origin: Mapping[str, str]) -> str:
    """Which rules the first layout breaks, in words; numbers of replicas are said as devices, which one can give."""
    from moesaic.plan.feasible import problems

    if not len(layouts):
        return "no layout agrees with what is given"
    row = layouts.row(0)
    inner = int(row["tp"]) * int(row["pp"]) * int(row["cp"])

    def devices(found: re.Match[str]) -> str:
        return "use --gpus " + re.sub(r"\d+", lambda n: str(int(n[0]) * inner), found[1])

    said = problems(shape, row, batch, device)
    # A tp or pp that cannot be is said alone: what follows from it will change with it.
    said = [text for text in said if text.startswith(("tp =", "pp ="))][:1] or said
    text = re.sub(r"(?:use )?dp = (\d+(?: or \d+)?)", devices, "; ".join(said)).replace("or use --gpus", "or --gpus")
    held = [name for name in ("tp", "pp", "cp", "ep", "interleave", "micro_batch") if origin.get(name) == OF_RECIPE]
    recipes = f" ({', '.join(held)}: the recipe's layout)" if held else ""
    return text + recipes if text else "no layout agrees with what is given"
