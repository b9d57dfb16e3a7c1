"""The answer to a question about training as a sheet: layout, memory, step, run, money, failures."""

import math
from collections.abc import Sequence

from moesaic.plan.choice import POWER_SHARE, Choice
from moesaic.plan.cost import implied_mfu
from moesaic.plan.estimate import Estimate
from moesaic.plan.failures import Faults, outcome
from moesaic.plan.failures_sheet import failures_sheet
from moesaic.plan.flops import parameter_flops
from moesaic.plan.memory import Memory
from moesaic.plan.parts import HELD, MEMORY_WORDS, SPENT
from moesaic.plan.prices import Price, Prices, no_rent
from moesaic.plan.sheet import Chart, Sheet, Value
from moesaic.plan.step import PARTS
from moesaic.plan.train import OF_RECIPE, Asked
from moesaic.plan.train_tables import bubbles, fits, partial_recomputation, timeline

ROUND = 0.005  # of the days: a search that gains less is no news


def train_sheet(
    asked: Asked, found: Estimate, prices: Prices, paid: Price | None = None, faults: Faults | None = None
) -> Sheet:
    """Everything that `moesaic plan train` says. `paid`: dollars per device-hour, None where nobody quotes them."""
    faults = faults or Faults()
    sheet = Sheet(f"training {found.shape.name} on {found.devices:,} x {found.device.label}")
    _layout(sheet, asked, found)
    _memory(sheet, found)
    _step(sheet, found)
    _run(sheet, asked, found, prices, paid, faults)
    fits(sheet, found)
    bubbles(sheet, found)
    timeline(sheet, found)
    partial_recomputation(sheet, found)
    return sheet


def priced(asked: Asked, found: Estimate, faults: Faults) -> Choice:
    """The layout with all devices asked for, so that its days and dollars are reckoned as those of a search."""
    return Choice(found, asked.wanted.gpus, outcome(found.shape.total_parameters, found.devices, faults).goodput)


def _layout(sheet: Sheet, asked: Asked, found: Estimate) -> None:
    row = found.layout.row(0)
    world = f"tp {row['tp']} x pp {row['pp']} x cp {row['cp']} x dp {row['dp']}"
    section = "Layout"
    gpus = asked.wanted.gpus
    idle = gpus - found.devices
    sheet.add(section, "devices_used", "devices at work", found.devices, "", f"{world} = {found.devices}")
    sheet.add(section, "devices_asked", "devices asked for", gpus, "", "--gpus; all of them are paid")
    sheet.add(section, "idle_devices", "devices left over", idle, "", "asked for - at work; paid all the same")
    for name, value in row.items():
        how = asked.origin.get({"chunks": "interleave"}.get(name, name), "devices / (tp x pp x cp)")
        sheet.add(section, name, LAYOUT_WORDS[name], value, "", how)
    how = f"4: fp32, 2: bf16; {asked.origin['gradient_bytes']}"
    sheet.add(section, "gradient_bytes", "bytes of a gradient", found.job.gradient_bytes, "", how)
    sheet.add(
        section,
        "micro_batches",
        "micro-batches of a replica",
        found.micro_batches,
        "",
        "batch / (dp x micro-batch), whole ones that the schedule takes",
        batch_sequences=found.job.batch,
    )
    how = "given, the recipe's, or 8,192 where nothing says"
    sheet.add(section, "sequence_tokens", "sequence", found.job.seq_len, "tokens", how)
    sheet.add(section, "batch_tokens", "batch", found.tokens, "tokens", "sequences x length", asked=asked.batch_tokens)
    sheet.add(section, "batch_sequences", "", found.sequences, "sequences", "micro-batches x micro-batch x dp")
    if found.shape.sparse_layers:
        each = found.tokens_per_expert
        sheet.add(section, "batch_tokens_per_expert", "", each, "tokens per expert", "batch x top_k / experts")
    if idle:
        inner = found.devices // int(found.layout.dp[0])
        experts_on = int(row["ep"]) * int(row["etp"])
        group = inner * (experts_on // math.gcd(experts_on, int(row["tp"]) * int(row["cp"])))
        sheet.note(
            f"{idle} devices stay idle and are paid for: replicas come {group} devices at a time, so "
            f"{found.devices:,} or {found.devices + group:,} come out even."
        )


LAYOUT_WORDS = {
    "tp": "tensor parallel",
    "pp": "pipeline stages",
    "cp": "context parallel",
    "dp": "replicas",
    "ep": "expert parallel",
    "etp": "tensor parallel of one expert",
    "micro_batch": "sequences of a micro-batch",
    "chunks": "model chunks on a stage (interleave)",
    "zero": "ZeRO stage",
    "recompute": "recomputation",
}


def _memory(sheet: Sheet, found: Estimate) -> None:
    section = "Memory of a device on the heaviest stage"
    parts = {name: float(getattr(found.memory, name)[0]) / 1e9 for name in Memory.__dataclass_fields__}
    for name, value in parts.items():
        sheet.add(section, f"memory_{name}_gb", MEMORY_WORDS[name], value, "GB", HELD[name])
    total = sum(parts.values())
    sheet.add(section, "memory_gb", "memory needed", total, "GB", "sum of the above")
    sheet.add(section, "device_memory_gb", "the device has", found.device.memory_gb, "GB", found.device.source)
    sheet.add(section, "fits", "fits", found.fits, "", "memory needed <= the device has")
    if not found.fits:
        sheet.note(
            f"Does not fit: {total:.1f} GB of {found.device.memory_gb:g}, so days and dollars are those of no run. "
            "`moesaic plan search` names the layout, or the number of devices, that would."
        )
    sheet.chart(
        Chart(
            "memory",
            "memory of a device on the heaviest stage",
            "bars",
            "",
            "GB",
            {name: [(0, value)] for name, value in parts.items() if value > 0},
            categories=[found.shape.name],
        )
    )


def _step(sheet: Sheet, found: Estimate) -> None:
    section = "One step"
    total = float(found.time.total[0])
    parts = {name: seconds for name in PARTS if (seconds := float(getattr(found.time, name)[0]))}
    sums = "; ".join(f"{name.replace('_', ' ')}: {SPENT[name]}" for name in parts)
    how = f"sum of {sums}. Interval from the residuals of the stack"
    sheet.add(section, "step_time_s", "time", found.seconds, "s", how, stack=found.stack.name, sigma=found.sigma)
    rate = found.tokens / found.seconds.p50
    sheet.add(section, "tokens_per_s", "tokens", rate, "tokens/s", "batch / time")
    sheet.add(
        section, "tokens_per_s_per_device", "", rate / found.devices, "tokens/s per device", "batch / time / devices"
    )
    sheet.add(
        section,
        "mfu_share",
        "model FLOP utilisation (6 N)",
        found.mfu,
        "share",
        "6 x active parameters x tokens/s / peak",
    )
    attention = "3 x forward with causal scores x tokens/s / peak"
    sheet.add(
        section,
        "mfu_with_attention_share",
        "the same with attention scores",
        found.mfu_with_attention,
        "share",
        attention,
    )
    sheet.add(section, "hfu_share", "hardware FLOP utilisation", found.hfu, "share", "with what is computed twice")
    bubble = float(found.time.bubble_fraction[0])
    sheet.add(
        section,
        "bubble_share",
        "pipeline bubble",
        bubble,
        "share",
        "(p - 1) / (v m + p - 1)",
        v=int(found.layout.chunks[0]),
    )
    rows: list[dict[str, Value]] = [
        {"part": name.replace("_", " "), "time_s": s, "of_step_share": s / total} for name, s in parts.items()
    ]
    sheet.table("step_parts", "where a step's time goes", rows)


def _run(sheet: Sheet, asked: Asked, found: Estimate, prices: Prices, paid: Price | None, faults: Faults) -> None:
    section = "The run"
    choice, tokens = priced(asked, found, faults), asked.tokens
    lost = outcome(found.shape.total_parameters, found.devices, faults)
    took = choice.days(tokens)
    flop = 3 * parameter_flops(found.shape) * tokens
    sheet.add(section, "tokens", "tokens", tokens, "", "given, else the recipe's, epochs counted")
    sheet.add(section, "training_flop", "training FLOP (6 N D)", flop, "FLOP", "6 x active parameters x tokens")
    sheet.add(section, "steps", "steps at the full batch", tokens / found.tokens, "", "tokens / batch")
    formula = "training FLOP / (devices at work x peak x MFU x goodput), every step at the full batch"
    sheet.add(section, "days", "days", took, "d", formula, goodput=choice.goodput)
    hours = took.map(24.0 * choice.gpus)
    sheet.add(section, "device_hours", "device-hours", hours, "h", "days x 24 x devices asked for")
    at = paid.amount if paid else None
    sheet.add(section, "rent_usd_per_device_hour", "price", at, "$ per device-hour", paid.said if paid else "unknown")
    sheet.add(section, "run_usd", "cost", choice.dollars(tokens, at), "$", "device-hours x price")
    if paid is None:
        sheet.note(no_rent(found.device))
    device, pue = found.device, prices["power.pue"].value
    watts = f"devices at work x ({POWER_SHARE} x device watts + share of its host) x PUE"
    drawn = choice.power_mw(pue)
    sheet.add(section, "power_mw", "power", drawn, "MW", watts, watts=device.watts, host=device.host_watts, pue=pue)
    sheet.add(section, "energy_mwh", "energy", choice.energy_mwh(tokens, pue), "MWh", "power x 24 x days")
    section = "Failures"
    sheet.add(
        section, "mtti_h", "mean time to interruption", lost.mean / 3600, "h", "1 / (rate x devices)", rate=faults.rate
    )
    broken = took.map(24 * 3600 / lost.mean)
    sheet.add(section, "interruptions", "interruptions in the run", broken, "", "days / mean time to interruption")
    state = lost.state / 1e12
    sheet.add(
        section, "checkpoint_tb", "checkpoint", state, "TB", "14 bytes a parameter: bf16 and fp32 weights, moments"
    )
    sheet.add(section, "checkpoint_interval_s", "interval between checkpoints", lost.interval, "s", "Daly 2006")
    sheet.add(
        section,
        "goodput_share",
        "goodput",
        lost.goodput,
        "share",
        "work kept / time; `moesaic plan failures` varies it",
    )
    sheet.add(section, "spare_nodes", "spare nodes", lost.spare_nodes, "", "99 % of the time enough, 24 h of repair")
    overall = implied_mfu(flop, found.devices, found.peak, took)
    sheet.add(
        section,
        "mfu_with_failures_share",
        "MFU over the whole run",
        overall,
        "share",
        "training FLOP / (devices x peak x days)",
    )
    for chart in failures_sheet(found.shape, found.devices, took.p50, faults).charts:
        sheet.chart(chart)
    if found.job.imbalance == 1 and found.shape.sparse_layers:
        sheet.note("Experts are taken as evenly loaded; --imbalance 1.2 prices a busiest expert of 1.2 times the mean.")


def add_days_against_devices(sheet: Sheet, rows: Sequence[dict[str, Value]]) -> None:
    """Cost against days over numbers of devices: a table and a picture."""
    sheet.table("devices_against_days", "more or fewer devices", rows)
    points = [(float(r["days"].p50), float(r["run_usd"].p50) / 1e6) for r in rows if r["run_usd"]]  # type: ignore[union-attr]
    if points:
        sheet.chart(Chart("cost_against_days", "cost against days", "points", "days", "M$", {"devices": points}))


def add_better(sheet: Sheet, asked: Asked, days: float, best: Choice, command: str) -> None:
    """Say that a search finds better, where it does and the layout was not all the user's own wish."""
    least = best.days(asked.tokens).p50
    if least > days * (1 - ROUND):
        return
    row = best.layout
    degrees = " x ".join(f"{name} {row[name]}" for name in ("tp", "pp", "cp", "dp"))
    kept = "The recipe's layout is kept" if OF_RECIPE in asked.origin.values() else "Few layouts are tried here"
    sheet.note(f"{kept}; of all layouts {degrees}, ep {row['ep']} takes {least:.1f} days, not {days:.1f}: {command}")
