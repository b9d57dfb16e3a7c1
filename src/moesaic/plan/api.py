"""The planner from Python: a few functions that take what the command line takes and give sheets."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moesaic.errors import PlanError
from moesaic.plan.device import device
from moesaic.plan.estimate import Estimate
from moesaic.plan.failures import Faults
from moesaic.plan.optimality_sheet import add_optimality, sources_of
from moesaic.plan.prices import Prices
from moesaic.plan.prices import prices as read_prices
from moesaic.plan.quantity import parse_context, parse_count
from moesaic.plan.shapes import read_source
from moesaic.plan.sheet import Sheet, Value
from moesaic.plan.stack import stack as read_stack
from moesaic.plan.train import Asked, Wanted, answer, ask
from moesaic.plan.train_sheet import add_days_against_devices, run_cost, train_sheet
from moesaic.plan.train_tables import ramp

SCALES = (0.25, 0.5, 1.0, 2.0)  # of the replicas, for cost against days


def train_plan(
    source: str,
    hardware: str,
    gpus: int,
    *,
    seq_len: str | int | None = None,
    tokens: str | float | None = None,
    batch: str | float | None = None,
    stack: str = "megatron-core",
    stacks: Path | None = None,
    price: float | None = None,
    prices: Path | None = None,
    optimality: bool = False,
    values: Sequence[str] = (),
    **layout: Any,
) -> Sheet:
    """A training run on `gpus` devices. `layout` takes the fields of `plan.train.Wanted`; what is absent is chosen.

        train_plan("gpt4", "a100-80", 24960, tp=8, pp=15, tokens="13T", batch="60M")["days"]

    Raises PlanError.
    """
    if price is not None and not price > 0:
        raise PlanError(f"--price {price:g}: give dollars per device-hour, above 0")
    shape, recipe = read_source(source, values)
    wanted = Wanted(
        gpus=gpus,
        seq_len=None if seq_len is None else parse_context(str(seq_len), "--seq-len"),
        tokens=None if tokens is None else parse_count(str(tokens), "--tokens"),
        batch_tokens=None if batch is None else parse_count(str(batch), "--batch"),
        **layout,
    )
    on, using = device(hardware), read_stack(stack, stacks)
    asked = ask(shape, recipe, on, using, wanted)
    found = answer(asked)
    table = read_prices(prices)
    sheet = train_sheet(asked, found, table, price)
    if recipe:
        ramp(sheet, asked, found, recipe)
    if found.fits:
        add_days_against_devices(sheet, _scaled(asked, found, price, table))
    if optimality:
        add_optimality(sheet, shape, asked.tokens, sources=sources_of(recipe) if recipe else None)
    return sheet


def _scaled(asked: Asked, found: Estimate, price: float | None, table: Prices) -> list[dict[str, Value]]:
    """The same run on fewer and on more replicas of the layout found."""
    rows: list[dict[str, Value]] = []
    row = found.layout.row(0)
    kept: dict[str, Any] = {name: int(row[name]) for name in ("tp", "pp", "cp", "ep", "zero")}
    kept |= {"seq_len": asked.job.seq_len, "tokens": asked.tokens, "batch_tokens": asked.batch_tokens}
    for scale in SCALES:
        gpus = int(int(row["dp"]) * scale) * found.devices // int(row["dp"])
        wanted = replace(asked.wanted, gpus=gpus, **kept)
        try:
            other = answer(ask(asked.shape, None, asked.device, asked.stack, wanted))
        except PlanError:  # fewer devices than a replica, or more replicas than sequences
            continue
        cost = run_cost(other, asked.tokens, table, price, Faults())
        rows.append(
            {
                "devices": other.devices,
                "micro_batches": other.micro_batches,
                "mfu_share": other.mfu.p50,
                "days": cost.days,
                "dollars": cost.dollars,
                "fits": other.fits,
            }
        )
    return rows
