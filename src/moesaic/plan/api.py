"""The planner from Python: a few functions that take what the command line takes and give sheets."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from math import inf, isfinite
from pathlib import Path
from typing import Any

from moesaic.errors import PlanError
from moesaic.plan.choice import Choice
from moesaic.plan.device import device
from moesaic.plan.estimate import Estimate
from moesaic.plan.failures import Faults
from moesaic.plan.fastest import fastest
from moesaic.plan.optimality_sheet import add_optimality, sources_of
from moesaic.plan.prices import Price, rent
from moesaic.plan.prices import prices as read_prices
from moesaic.plan.quantity import parse_context, parse_count
from moesaic.plan.shapes import read_shape, read_source
from moesaic.plan.sheet import Sheet, Value
from moesaic.plan.stack import stack as read_stack
from moesaic.plan.train import CHOSEN, OF_RECIPE, Asked, Wanted, answer, ask
from moesaic.plan.train_sheet import add_better, add_days_against_devices, priced, train_sheet
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
    known = {field.name for field in fields(Wanted)} - {"gpus", "seq_len", "tokens", "batch_tokens"}
    if unknown := sorted(set(layout) - known):
        raise PlanError(f"no option '{unknown[0]}' of a training plan; known: {', '.join(sorted(known))}")
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
    paid = rent(on, price, table)
    sheet = train_sheet(asked, found, table, paid)
    taken = priced(asked, found, Faults())
    if recipe:
        ramp(sheet, asked, found, recipe, taken.goodput)
    if found.fits:
        add_days_against_devices(sheet, _scaled(asked, found, paid))
    if {CHOSEN, OF_RECIPE} & set(asked.origin.values()):
        said = {"--gpus": gpus, "--seq-len": seq_len, "--tokens": tokens, "--batch": batch, "--stacks": stacks}
        _compare_all(sheet, asked, taken, _search_command(source, taken, said, values))
    if optimality:
        add_optimality(sheet, shape, asked.tokens, sources=sources_of(recipe) if recipe else None)
    return sheet


def params_plan(
    source: str,
    *,
    seq_len: str | int | None = None,
    pp: int | None = None,
    vision: bool = False,
    vision_every: int = 8,
    vision_tokens: str | float = "2T",
    vision_encoder: str = "vit-bigg",
    pixels: int = 448,
    values: Sequence[str] = (),
) -> Sheet:
    """The sheet of `plan params` from what the command line takes; `vision` prices the addition too.

        params_plan("gpt4")["active_parameters"]

    Raises PlanError.
    """
    from moesaic.plan.params import params_sheet
    from moesaic.plan.vision import VisionPlan, add_vision

    shape, recipe = read_source(source, values)
    length = None if seq_len is None else parse_context(str(seq_len), "--seq-len")
    sheet = params_sheet(shape, length, pp or (recipe.layout.pp if recipe else 1), recipe)
    if vision:
        tokens = parse_count(str(vision_tokens), "--vision-tokens")
        add_vision(sheet, shape, VisionPlan(encoder=vision_encoder, every=vision_every, pixels=pixels), tokens, recipe)
    return sheet


def failures_plan(source: str, gpus: int, days: float = 90, *, price: float | None = None, **faults: Any) -> Sheet:
    """Failures of `days` of wall-clock time on `gpus` devices. `faults` takes the fields of `plan.failures.Faults`;
    without `price` (dollars per device-hour; the verb knows no device) money is left out.

        failures_plan("gpt4", 24_960, 95, restart=180)["goodput_share"]

    Raises PlanError.
    """
    from moesaic.plan.failures_sheet import failures_sheet

    if not (days > 0 and isfinite(days)):
        raise PlanError(f"--days {days:g}: give days above 0, for example 90")
    if price is not None and not (price > 0 and isfinite(price)):
        raise PlanError(f"--price {price:g}: give dollars per device-hour, above 0")
    known = {field.name for field in fields(Faults)}
    if unknown := sorted(set(faults) - known):
        raise PlanError(f"no option '{unknown[0]}' of a plan of failures; known: {', '.join(sorted(known))}")
    return failures_sheet(read_shape(source), gpus, days, Faults(**faults), price)


def validate_plan(csv: Path | None = None, *, rows: bool = False, stacks: Path | None = None) -> Sheet:
    """How far the planner is from measurements: the published ones, or those of a file. Raises PlanError."""
    from moesaic.plan.validate import validate, validation_sheet

    return validation_sheet(validate(csv, stacks), rows)


def fit_plan(
    runs: Path, *, stack: str = "megatron-core", name: str = "mine", out: Path | None = None, stacks: Path | None = None
) -> Sheet:
    """A stack profile calibrated on the runs of a file, written to `out` where given. Needs scipy. Raises PlanError."""
    from moesaic.plan.runs import fit_runs, fit_sheet, write_stacks

    found = fit_runs(runs, stack, name, stacks)
    if out is not None:
        write_stacks(out, found)
    return fit_sheet(found, out)


def _search_command(source: str, taken: Choice, said: Mapping[str, Any], values: Sequence[str]) -> str:
    """The command that searches for the same run: what was said, and what is not as `plan search` has it by itself."""
    found = taken.estimate
    given = {"--hardware": found.device.name} | dict(said)
    given["--stack"] = None if found.stack.name == "megatron-core" else found.stack.name
    given["--precision"] = None if found.job.precision == "bf16" else found.job.precision
    given["--imbalance"] = None if found.job.imbalance == 1 else found.job.imbalance
    given["--gradients"] = "bf16" if found.job.gradient_bytes == 2 else None
    options = [f"{name} {value}" for name, value in given.items() if value is not None]
    return " ".join(["moesaic plan search", source, *options, *(f"--set {value}" for value in values)])


def _compare_all(sheet: Sheet, asked: Asked, taken: Choice, command: str) -> None:
    """Hold the layout against the best of all, and name the command that finds it."""
    best = fastest(asked.shape, taken.estimate.job, asked.device, asked.stack, asked.wanted.gpus)
    if best is None or not best.estimate.fits or asked.wanted.zero_bubble:
        return
    days = taken.days(asked.tokens).p50 if taken.estimate.fits else inf
    add_better(sheet, asked, days, best, command)


def _scaled(asked: Asked, found: Estimate, paid: Price | None) -> list[dict[str, Value]]:
    """The same run on fewer and on more replicas of the layout found."""
    rows: list[dict[str, Value]] = []
    row = found.layout.row(0)
    kept: dict[str, Any] = {name: int(row[name]) for name in ("tp", "pp", "cp", "ep", "zero", "micro_batch")}
    kept |= {"seq_len": asked.job.seq_len, "tokens": asked.tokens, "batch_tokens": asked.batch_tokens}
    for scale in SCALES:
        gpus = int(int(row["dp"]) * scale) * found.devices // int(row["dp"])
        wanted = replace(asked.wanted, gpus=gpus, **kept)
        try:
            again = ask(asked.shape, None, asked.device, asked.stack, wanted)
            other = answer(again)
        except PlanError:  # fewer devices than a replica, or more replicas than sequences
            continue
        choice = priced(again, other, Faults())
        rows.append(
            {
                "devices_used": other.devices,
                "micro_batches": other.micro_batches,
                "mfu_share": other.mfu.p50,
                "days": choice.days(asked.tokens),
                "run_usd": choice.dollars(asked.tokens, paid.amount if paid else None),
                "fits": other.fits,
            }
        )
    return rows
