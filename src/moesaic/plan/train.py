"""A question about training, and the layout that answers it: what is given stays, the rest is chosen."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from moesaic.errors import PlanError
from moesaic.plan.device import Device
from moesaic.plan.estimate import Estimate, best, estimate
from moesaic.plan.job import Job
from moesaic.plan.layouts import RECOMPUTE, Layouts, valid
from moesaic.plan.shape import Shape
from moesaic.plan.stack import Stack
from moesaic.recipe import Recipe

MICRO_BATCHES = (1, 2, 4, 8)
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
    idle: int  # devices that no layout uses
    free_gradients: bool


def ask(shape: Shape, recipe: Recipe | None, device: Device, stack: Stack, wanted: Wanted) -> Asked:
    """The question in full. Raises PlanError for a layout that cannot be, with the rule and the nearest numbers."""
    stage = recipe.stages[0] if recipe else None
    seq_len = wanted.seq_len or (stage.seq_len if stage else shape.context)
    tokens = wanted.tokens or (stage.tokens if stage else TOKENS_PER_PARAMETER * shape.active_parameters)
    batch_tokens = wanted.batch_tokens or (stage.batch[-1].tokens if stage else BATCH_TOKENS)
    given = recipe.layout if recipe else None

    def degree(name: str, otherwise: int = 1) -> int:
        value = getattr(wanted, name) or (getattr(given, name) if given else otherwise)
        if value < 1:
            raise PlanError(f"--{name} {value}: give at least 1")
        return int(value)

    tp, pp, cp, ep = (degree(name) for name in ("tp", "pp", "cp", "ep"))
    inner = tp * pp * cp
    if wanted.gpus < inner:
        raise PlanError(f"tp x pp x cp = {inner} needs more than {wanted.gpus} devices; lower one of them")
    dp = wanted.gpus // inner
    batch = int(batch_tokens // seq_len)
    if batch < 1:
        raise PlanError(f"a batch of {batch_tokens:,.0f} tokens holds no sequence of {seq_len}; raise --batch")
    if tokens < batch_tokens:
        raise PlanError(f"{tokens:,.0f} tokens are less than one batch of {batch_tokens:,.0f}; lower --batch")
    job = Job(
        seq_len,
        batch,
        wanted.precision,
        GRADIENT_BYTES[wanted.gradients or "fp32"],
        imbalance=wanted.imbalance,
        zero_bubble=wanted.zero_bubble,
    )
    zero = wanted.zero if wanted.zero is not None else (given.zero if given else 1)
    modes = range(3) if wanted.recompute is None else [RECOMPUTE.index(wanted.recompute)]
    splits = {tp if ep == 1 else 1} | ({tp} if (dp * cp) % ep == 0 else set()) if wanted.etp is None else {wanted.etp}
    chunks = range(1, -(-shape.n_layers // pp) + 1) if wanted.interleave is None else [wanted.interleave]
    size = wanted.micro_batch or (stage.micro_batch if stage else None)
    micro = MICRO_BATCHES if size is None else (size,)
    if wanted.zero_bubble:
        chunks = [1]
    grid = np.array([(b, v, r, e) for b in micro for v in chunks for r in modes for e in sorted(splits)])
    layouts = Layouts.of(tp, pp, cp, dp, ep, grid[:, 3], grid[:, 0], grid[:, 1], zero, grid[:, 2])
    ok = valid(shape, layouts, batch)
    if not ok.any():
        raise PlanError(_rule(shape, layouts, batch, device))
    free = wanted.gradients is None
    return Asked(shape, device, stack, job, tokens, batch_tokens, layouts[ok], wanted.gpus - dp * inner, free)


def answer(asked: Asked) -> Estimate:
    """The layout that trains fastest among those that fit, gradients in fp32 if they may be; else the smallest."""
    found = best(estimate(asked.shape, asked.job, asked.device, asked.stack, asked.layouts))
    if found.fits or not asked.free_gradients:
        return found
    job = replace(asked.job, gradient_bytes=2)
    smaller = best(estimate(asked.shape, job, asked.device, asked.stack, asked.layouts))
    return smaller if smaller.fits else found


def _rule(shape: Shape, layouts: Layouts, batch: int, device: Device) -> str:
    """Which rule the first layout breaks, in words."""
    from moesaic.plan.feasible import problems

    return "; ".join(problems(shape, layouts.row(0), batch, device)) or "no layout agrees with what is given"
