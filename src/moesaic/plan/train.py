"""A question about training, and the layout that answers it: what is given stays, the rest is chosen."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from moesaic.errors import PlanError
from moesaic.plan.device import Device
from moesaic.plan.estimate import Estimate, estimate
from moesaic.plan.job import Job
from moesaic.plan.layouts import RECOMPUTE, Layouts, valid
from moesaic.plan.shape import Shape
from moesaic.plan.stack import Stack
from moesaic.recipe import Recipe

TENSOR = (1, 2, 4, 8)
MICRO = (1, 2, 4, 8)
CHUNKS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24)
TOKENS_PER_PARAMETER = 20  # where no recipe says how long to train (Hoffmann et al. 2022)
BATCH_TOKENS = 4_194_304  # where no recipe says
GRADIENT_BYTES = {"bf16": 2, "fp32": 4}


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


def ask(shape: Shape, recipe: Recipe | None, device: Device, stack: Stack, wanted: Wanted) -> Asked:
    """The question in full. Raises PlanError for a layout that cannot be, with the rule and the nearest numbers."""
    stage = recipe.stages[0] if recipe else None
    seq_len = wanted.seq_len or (stage.seq_len if stage else shape.context)
    tokens = wanted.tokens or (stage.tokens if stage else TOKENS_PER_PARAMETER * shape.active_parameters)
    batch_tokens = wanted.batch_tokens or (stage.batch[-1].tokens if stage else BATCH_TOKENS)
    given = recipe.layout if recipe else None
    batch = int(batch_tokens // seq_len)
    if batch < 1:
        raise PlanError(f"a batch of {batch_tokens:,.0f} tokens holds no sequence of {seq_len}; raise --batch")
    if tokens < batch_tokens:
        raise PlanError(f"{tokens:,.0f} tokens are less than one batch of {batch_tokens:,.0f}; lower --batch")

    def choices(name: str, otherwise: Sequence[int]) -> Sequence[int]:
        value = getattr(wanted, name)
        value = getattr(given, name, None) if value is None else value
        return otherwise if value is None else (int(value),)

    degrees = {
        "tp": choices("tp", [n for n in TENSOR if n <= device.domain]),
        "pp": choices("pp", [n for n in range(1, shape.n_layers + 1) if shape.n_layers % n == 0]),
        "cp": choices("cp", (1,)),
        "ep": choices("ep", [n for n in range(1, shape.n_experts + 1) if shape.n_experts % n == 0]),
        "zero": choices("zero", (1, 3)),
        "chunks": (1,) if wanted.zero_bubble else choices("interleave", CHUNKS),
        "recompute": range(3) if wanted.recompute is None else (RECOMPUTE.index(wanted.recompute),),
        "micro_batch": (stage.micro_batch,) if stage and not wanted.micro_batch else choices("micro_batch", MICRO),
        "split": (0, 1) if wanted.etp is None else (2,),  # of an expert: whole, as dense blocks, as given
    }
    mesh = np.meshgrid(*degrees.values(), indexing="ij")
    grid = {name: array.ravel() for name, array in zip(degrees, mesh, strict=True)}
    split = grid.pop("split")
    inner = grid["tp"] * grid["pp"] * grid["cp"]
    if (inner > wanted.gpus).all():
        raise PlanError(f"tp x pp x cp = {inner.min()} needs more than {wanted.gpus} devices; lower one of them")
    etp = np.select([split == 0, split == 1], [1, grid["tp"]], wanted.etp or 1)
    layouts = Layouts.of(**grid, dp=wanted.gpus // inner, etp=etp)
    layouts = layouts[(inner <= wanted.gpus) & ((layouts.ep > 1) | (etp == layouts.tp))]
    ok = valid(shape, layouts, batch)
    if not ok.any():
        raise PlanError(_rule(shape, layouts, batch, device))
    width = GRADIENT_BYTES[wanted.gradients or "fp32"]
    job = Job(seq_len, batch, wanted.precision, width, imbalance=wanted.imbalance, zero_bubble=wanted.zero_bubble)
    return Asked(shape, device, stack, job, tokens, batch_tokens, layouts[ok], wanted)


def answer(asked: Asked) -> Estimate:
    """The layout that trains fastest among those that fit, gradients in fp32 if they may be; else the smallest."""
    found = estimate(asked.shape, asked.job, asked.device, asked.stack, asked.layouts)
    if found.fits or asked.wanted.gradients is not None:
        return found
    job = replace(asked.job, gradient_bytes=2)
    smaller = estimate(asked.shape, job, asked.device, asked.stack, asked.layouts)
    return smaller if smaller.fits else found


def _rule(shape: Shape, layouts: Layouts, batch: int, device: Device) -> str:
    """Which rule the first layout breaks, in words."""
    from moesaic.plan.feasible import problems

    return "; ".join(problems(shape, layouts.row(0), batch, device)) or "no layout agrees with what is given"
