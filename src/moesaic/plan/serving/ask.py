"""Serving from Python: it takes what `moesaic plan serve` takes and gives a sheet."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from moesaic.errors import PlanError
from moesaic.plan.cost import product
from moesaic.plan.device import Device, device
from moesaic.plan.prices import Price, no_rent, rent
from moesaic.plan.prices import prices as read_prices
from moesaic.plan.quantity import parse_context
from moesaic.plan.serving.against import smallest
from moesaic.plan.serving.cost import Workload
from moesaic.plan.serving.profile import profile
from moesaic.plan.serving.question import Question
from moesaic.plan.serving.replica import replica
from moesaic.plan.serving.report import serve_sheet
from moesaic.plan.shapes import read_shape
from moesaic.plan.sheet import Figure, Interval, Sheet, Table, Value


def serve_plan(
    source: str,
    hardware: str = "h100",
    gpus: int | None = None,
    *,
    tp: int | None = None,
    pp: int | None = None,
    dp: int = 1,
    ep: int = 1,
    context: str | int | None = None,
    mix: str = "8:1",
    weights: str = "bf16",
    kv: str | None = None,
    batch: str | Sequence[int] | None = None,
    engine: str = "vllm",
    price: float | None = None,
    prices: Path | None = None,
    chunk: int = 1024,
    first_layers: int | None = None,
    rate: float | None = None,
    target: float | None = None,
    disaggregate: bool = False,
    drafts: int = 0,
    accept: float = 0.7,
    draft_cost: float = 0.02,
    against: str | None = None,
    ratio: float = 3.0,
) -> Sheet:
    """What serving costs. Without `tp` and `pp`, the smallest replica, by doubling, that holds the context.

        serve_plan("gpt4", "h100", weights="fp8", context="32k")["output_usd_per_1k_tokens"]

    Raises PlanError.
    """
    shape, on = read_shape(source), device(hardware)
    length = parse_context(str(context), "--context") if context else shape.context
    if length < 2:
        raise PlanError(f"--context {length}: give at least 2 tokens, one in and one out")
    if tp is not None and pp is not None:
        model = replica(shape, on, tp=tp, pp=pp, dp=dp, ep=ep, weights=weights, kv=kv)
    else:
        model = smallest(shape, on, weights, length, kv=kv, dp=dp, ep=ep, tp=tp, pp=pp)
    gpus = model.devices if gpus is None else gpus
    if gpus < 1 or gpus % model.devices:
        below = max(gpus // model.devices, 1) * model.devices
        raise PlanError(
            f"{gpus} devices are no multiple of tp {model.tp} x pp {model.pp} x dp {dp} = {model.devices}; "
            f"use {below} or {below + model.devices}"
        )
    if chunk < 1:
        raise PlanError(f"--chunk {chunk}: give at least 1 token, for example 1024")
    paid = rent(on, price, read_prices(prices))
    if paid is None and target is not None:
        raise PlanError(f"--target {target:g} needs a price. {no_rent(on)}")
    prompt, output = _mix(mix)
    question = Question(
        model=model,
        context=length,
        work=Workload(length * prompt / (prompt + output), length * output / (prompt + output)),
        batches=_batches(batch),
        usd_per_gpu_hour=paid.value if paid else 1.0,  # without a price all dollars are taken out again
        price_source=paid.said if paid else "",
        clusters=gpus // model.devices,
        engine=engine,
        chunk=chunk,
        first=first_layers,
        rate=rate,
        target_usd=target,
        pools=disaggregate,
        drafts=drafts,
        accept=accept,
        draft_cost=draft_cost,
        other=read_shape(against) if against else None,
        ratio=ratio,
    )
    sheet = serve_sheet(question, profile())
    if tp is None or pp is None:
        free = " and ".join(f"--{name}" for name, given in (("tp", tp), ("pp", pp)) if given is None)
        sheet.note(
            f"tp {model.tp} x pp {model.pp} is the smallest replica, by doubling what is not given, that holds "
            f"{length:,} tokens for each stage; {free} changes it"
        )
    return _with_price(sheet, paid, on)


def _with_price(sheet: Sheet, paid: Price | None, on: Device) -> Sheet:
    """Widen dollars by the range of the price, which multiplies them all; or leave them out where there is no price."""
    if paid is None:
        sheet.note(no_rent(on))
    elif paid.low < paid.high:
        sheet.note(
            f"Dollars in figures span the market's ${paid.low:g} to ${paid.high:g} a device-hour; tables and pictures "
            f"take ${paid.value:g}. --price sets one"
        )
    sheet.figures = [_figure(f, paid) for f in sheet.figures]
    if paid is None:
        sheet.tables = [Table(t.key, t.title, [{k: None if _money(k) else v for k, v in row.items()} for row in t.rows])
                        for t in sheet.tables]  # fmt: skip
        sheet.charts = [chart for chart in sheet.charts if not chart.y.startswith("$")]
    return sheet


def _figure(figure: Figure, paid: Price | None) -> Figure:
    value: Value = figure.value
    if paid is None:
        inputs = {key: None if _money(key) else given for key, given in figure.inputs.items()}
        return replace(figure, value=None if figure.unit.startswith("$") else value, inputs=inputs)
    if figure.unit.startswith("$ per") and "hour" not in figure.unit and isinstance(value, (float, int, Interval)):
        spread = Interval(paid.low / paid.value, 1.0, paid.high / paid.value)
        return replace(figure, value=product(value, spread) if paid.low < paid.high else value)
    return figure


def _money(key: str) -> bool:
    return "usd" in key.split("_")


def _mix(text: str) -> tuple[float, float]:
    found = re.fullmatch(r"\s*([0-9.]+)\s*:\s*([0-9.]+)\s*", text)
    try:
        prompt, output = (float(found[1]), float(found[2])) if found else (0.0, 0.0)
    except ValueError:
        prompt = output = 0.0
    if not (0 < prompt < math.inf and 0 < output < math.inf):
        raise PlanError(f"--mix {text}: give prompt:output with both above 0, for example 8:1")
    return prompt, output


def _batches(given: str | Sequence[int] | None) -> list[int]:
    if given is None:
        return []
    try:
        found = [int(part) for part in (given.split(",") if isinstance(given, str) else given)]
    except ValueError:
        found = [0]
    if min(found, default=0) < 1:
        raise PlanError(f"--batch {given}: give whole numbers from 1, for example 1,8,64")
    return found
