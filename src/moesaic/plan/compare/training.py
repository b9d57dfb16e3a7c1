"""A training run of a scenario: its layout, its utilisation, its days under failures."""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from moesaic.errors import PlanError
from moesaic.plan.compare.scenarios import Training
from moesaic.plan.compare.uncertainty import Numbers
from moesaic.plan.cost import days, implied_mfu
from moesaic.plan.device import Device, device
from moesaic.plan.estimate import Estimate
from moesaic.plan.failures import Faults, kept, outcome, saving
from moesaic.plan.fastest import fastest
from moesaic.plan.flops import parameter_flops
from moesaic.plan.goodput import LLAMA3_RATE, STATE_BYTES
from moesaic.plan.job import Job
from moesaic.plan.layouts import RECOMPUTE
from moesaic.plan.shape import Shape
from moesaic.plan.shapes import read_source
from moesaic.plan.sheet import Interval
from moesaic.plan.space import Space
from moesaic.plan.stack import stack as read_stack
from moesaic.plan.train import Wanted, answer, ask
from moesaic.plan.workload import GRADIENT_BYTES, micro_batches, workload

RATE = Interval(2.34 / 1000 / 24 / 8, LLAMA3_RATE, 6.50 / 1000 / 24 / 8)
"""Failures per device-hour: Meta's RSC-2 and RSC-1 (2.34 and 6.50 per thousand node-days, arXiv:2410.21680) around
Llama 3 (arXiv:2407.21783, sec. 3.3.4)."""

DATA_BYTES = 4.0  # a token on disk
DEGREES = ("tp", "pp", "cp", "ep", "interleave")  # one of these given, and the layout is no longer open


@dataclass(frozen=True)
class Run:
    """A run on `devices` of the `asked` that are paid. `mfu` is over the whole run when `whole`, else while nothing
    fails."""

    shape: Shape
    device: Device
    devices: int
    asked: int
    given: Training
    tokens: float
    mfu: Interval
    whole: bool
    found: Estimate | None  # None: the utilisation was given

    @property
    def flop_per_token(self) -> float:
        """6 FLOP per active parameter."""
        return 3 * parameter_flops(self.shape)

    @cached_property
    def faults(self) -> Faults:
        """What breaks, at the median rate."""
        rate = (self.given.failures_per_device_hour or RATE).p50
        found = Faults(rate=rate)
        return found if self.given.restart_s is None else replace(found, restart=self.given.restart_s)

    @cached_property
    def spare_nodes(self) -> int:
        """Nodes that stand ready while others are repaired."""
        return outcome(self.shape.total_parameters, self.devices, self.faults).spare_nodes

    @property
    def fits(self) -> bool:
        """Whether it fits the memory, as far as known."""
        return self.found is None or self.found.fits

    def goodput(self, rate: Numbers) -> Numbers:
        """Share of time that is work kept at a rate of failures per device-hour; 1 where `mfu` has them counted."""
        if self.whole:
            return np.ones_like(rate)
        saved = saving(self.shape.total_parameters, self.devices, self.faults)
        found = kept(saved, self.devices, self.faults, rate)
        if not np.all(np.asarray(found) > 1e-6):
            raise PlanError(f"{self.devices:,} devices that fail this often finish nothing; lower failures or restart")
        return np.asarray(found)

    def days(self, mfu: Numbers, rate: Numbers) -> Numbers:
        """Days of wall-clock time."""
        peak = self.device.peak(self.given.precision)
        found = days(self.tokens, self.flop_per_token, self.devices, peak, mfu, self.goodput(rate))
        return np.asarray(found)

    def implied_mfu(self, claimed_days: float) -> float:
        """MFU over the whole run that a claim of so many days stands on."""
        peak = self.device.peak(self.given.precision)
        return float(implied_mfu(self.tokens * self.flop_per_token, self.devices, peak, claimed_days))

    def storage_tb(self, kept: int) -> float:
        """Room for `kept` checkpoints and the tokens."""
        return (kept * self.shape.total_parameters * STATE_BYTES + DATA_BYTES * self.tokens) / 1e12

    def layout_words(self) -> str:
        """The layout in a few words."""
        if self.found is None:
            return "MFU given"
        row = self.found.layout.row(0)
        context = f" x cp {row['cp']}" if int(row["cp"]) > 1 else ""
        words = [
            f"tp {row['tp']} x pp {row['pp']}{context} x dp {row['dp']}",
            f"ep {row['ep']}",
            f"{row['recompute']} recompute",
        ]
        return ", ".join(words + ([f"interleave {row['chunks']}"] if int(row["chunks"]) > 1 else []))


def training_run(given: Training, on: Device, count: int) -> Run:
    """The run on `count` devices. Raises PlanError."""
    shape, recipe = read_source(given.source)
    on.must_train(given.precision)
    if given.run_mfu or given.step_mfu:
        stage = recipe.stages[0] if recipe else None
        tokens = given.tokens or (stage.tokens if stage else None)
        if tokens is None:
            raise PlanError(f"training.tokens is missing; {given.source} is no recipe that says how many")
        mfu = given.run_mfu or given.step_mfu
        assert mfu
        return Run(shape, on, count, count, given, float(tokens), mfu, given.run_mfu is not None, None)
    work = workload(shape, recipe, given.seq_len, given.tokens, given.batch)
    if any(name in given.layout for name in DEGREES):
        wanted = Wanted(
            gpus=count,
            seq_len=given.seq_len,
            tokens=given.tokens,
            batch_tokens=given.batch,
            precision=given.precision,
            imbalance=given.imbalance,
            **given.layout,
        )
        found = answer(ask(shape, recipe, on, read_stack(given.stack), wanted))
    else:  # a recipe's layout is for its own devices: where the scenario gives none, every layout is open
        job = Job(work.seq_len, work.batch, given.precision, imbalance=given.imbalance)
        found = _searched(shape, job, on.name, given.stack, count, tuple(given.layout.items()))
    return Run(shape, on, found.devices, count, given, work.tokens, found.mfu, False, found)


@lru_cache(maxsize=64)
def _searched(
    shape: Shape, job: Job, name: str, using: str, count: int, given: tuple[tuple[str, int | str], ...]
) -> Estimate:
    """What `plan search` puts first; gradients in fp32, in bf16 where only those fit. Raises PlanError."""
    fixed = dict(given)
    limits: dict[str, Any] = {"micro_batches": micro_batches(job.seq_len)}
    if "micro_batch" in fixed:
        limits["micro_batches"] = (int(fixed["micro_batch"]),)
    if "zero" in fixed:
        limits["zero"] = (int(fixed["zero"]),)
    if "recompute" in fixed:
        limits["recompute"] = (RECOMPUTE.index(str(fixed["recompute"])),)
    found = None
    for width in ("fp32", "bf16") if "gradients" not in fixed else (str(fixed["gradients"]),):
        wide = replace(job, gradient_bytes=GRADIENT_BYTES[width])
        now = fastest(shape, wide, device(name), read_stack(using), count, Space(**limits))
        found = found or now
        if now and now.estimate.fits:
            return now.estimate
    if found is None:
        raise PlanError(f"no layout of {count:,} devices runs a batch of {job.batch:,} sequences; change one of them")
    return found.estimate
