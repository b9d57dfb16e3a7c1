"""A training run of a scenario: its layout, its utilisation, its days under failures."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from moesaic.errors import PlanError
from moesaic.plan.compare.scenarios import Training
from moesaic.plan.compare.uncertainty import Numbers
from moesaic.plan.cost import days, implied_mfu
from moesaic.plan.device import Device
from moesaic.plan.estimate import Estimate
from moesaic.plan.failures import Faults, outcome
from moesaic.plan.flops import parameter_flops
from moesaic.plan.goodput import LLAMA3_RATE, STATE_BYTES, daly, goodput, mtti
from moesaic.plan.shape import Shape
from moesaic.plan.shapes import read_source
from moesaic.plan.sheet import Interval
from moesaic.plan.stack import stack as read_stack
from moesaic.plan.train import Wanted, answer, ask
from moesaic.recipe import Recipe

RATE = Interval(2.34 / 1000 / 24 / 8, LLAMA3_RATE, 6.50 / 1000 / 24 / 8)
"""Failures per device-hour: Meta's RSC-2 and RSC-1 (2.34 and 6.50 per thousand node-days, arXiv:2410.21680) around
Llama 3 (arXiv:2407.21783, sec. 3.3.4)."""

DATA_BYTES = 4.0  # a token on disk


@dataclass(frozen=True)
class Run:
    """A run on `devices`. `mfu` is over the whole run when `whole`, else while nothing fails."""

    shape: Shape
    device: Device
    devices: int
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
        stall = self.shape.total_parameters * STATE_BYTES / self.faults.storage
        mean = mtti(rate, self.devices)
        found = goodput(daly(stall, mean), stall, mean, self.faults.detect + self.faults.restart)
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
        words = [
            f"tp {row['tp']} x pp {row['pp']} x dp {row['dp']}",
            f"ep {row['ep']}",
            f"{row['recompute']} recompute",
        ]
        return ", ".join(words + ([f"interleave {row['chunks']}"] if int(row["chunks"]) > 1 else []))


def training_run(given: Training, on: Device, count: int) -> Run:
    """The run on `count` devices. Raises PlanError."""
    shape, recipe = read_source(given.source)
    on.peak(given.precision)
    wanted = Wanted(
        gpus=count,
        seq_len=given.seq_len,
        tokens=given.tokens,
        batch_tokens=given.batch,
        precision=given.precision,
        imbalance=given.imbalance,
        **given.layout,
    )
    if given.run_mfu or given.step_mfu:
        stage = recipe.stages[0] if recipe else None
        tokens = given.tokens or (stage.tokens if stage else None)
        if tokens is None:
            raise PlanError(f"training.tokens is missing; {given.source} is no recipe that says how many")
        mfu = given.run_mfu or given.step_mfu
        assert mfu
        return Run(shape, on, count, given, float(tokens), mfu, given.run_mfu is not None, None)
    using = read_stack(given.stack)
    # A recipe's layout is for its own devices: where the scenario gives none, every layout is open.
    asked = (
        ask(shape, recipe, on, using, wanted) if given.layout else ask(shape, None, on, using, _whole(wanted, recipe))
    )
    found = answer(asked)
    return Run(shape, on, found.devices, given, asked.tokens, found.mfu, False, found)


def _whole(wanted: Wanted, recipe: Recipe | None) -> Wanted:
    """With what a recipe says about the run, not about the layout."""
    if recipe is None:
        return wanted
    stage = recipe.stages[0]
    return replace(
        wanted,
        seq_len=wanted.seq_len or stage.seq_len,
        tokens=wanted.tokens or stage.tokens,
        batch_tokens=wanted.batch_tokens or stage.batch[-1].tokens,
    )
