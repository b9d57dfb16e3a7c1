"""The answer to a question about training as a sheet: layout, memory, step, run, money, failures."""

from collections.abc import Sequence
from dataclasses import dataclass

from moesaic.plan.cost import days, dollars, energy_mwh, implied_mfu, megawatts
from moesaic.plan.estimate import Estimate
from moesaic.plan.failures import Faults, outcome
from moesaic.plan.failures_sheet import failures_sheet
from moesaic.plan.flops import parameter_flops
from moesaic.plan.memory import Memory
from moesaic.plan.prices import Prices
from moesaic.plan.routing import tokens_per_expert
from moesaic.plan.sheet import Chart, Interval, Sheet, Value
from moesaic.plan.step import PARTS
from moesaic.plan.train import Asked
from moesaic.plan.train_tables import bubbles, fits, partial_recomputation, timeline

POWER_SHARE = 0.85  # of its rated power that a device draws on average in training (our assumption)


@dataclass(frozen=True)
class RunCost:
    """Days, dollars and energy of a whole run."""

    days: Interval
    goodput: float
    dollars: Interval
    mwh: Interval


def run_cost(found: Estimate, tokens: float, prices: Prices, price: float | None, faults: Faults) -> RunCost:
    """What the tokens take at the pace of `found`, failures included."""
    lost = outcome(found.shape.total_parameters, found.devices, faults)
    took = days(tokens, 3 * parameter_flops(found.shape), found.devices, found.peak, found.mfu, lost.goodput)
    rent = prices.rent(found.device.name).interval if price is None else price
    device = found.device
    pue = prices["power.pue"].value
    mwh = energy_mwh(found.devices, took, device.watts, device.host_watts, utilisation=POWER_SHARE, pue=pue)
    return RunCost(took, lost.goodput, dollars(found.devices, took, rent), mwh)


def train_sheet(
    asked: Asked, found: Estimate, prices: Prices, price: float | None = None, faults: Faults | None = None
) -> Sheet:
    """Everything that `moesaic plan train` says. `price`: dollars per device-hour in place of the registry's."""
    faults = faults or Faults()
    sheet = Sheet(f"training {found.shape.name} on {found.devices:,} x {found.device.label}")
    _layout(sheet, asked, found)
    _memory(sheet, found)
    _step(sheet, found)
    _run(sheet, asked, found, prices, price, faults)
    fits(sheet, asked, found)
    bubbles(sheet, asked, found)
    timeline(sheet, found)
    partial_recomputation(sheet, found)
    return sheet


def _layout(sheet: Sheet, asked: Asked, found: Estimate) -> None:
    row = found.layout.row(0)
    world = f"tp {row['tp']} x pp {row['pp']} x cp {row['cp']} x dp {row['dp']}"
    section = "Layout"
    idle = asked.wanted.gpus - found.devices
    sheet.add(section, "devices", "devices at work", found.devices, "", f"{world} = {found.devices}")
    sheet.add(section, "idle_devices", "devices left over", idle, "", "given devices - devices at work")
    for name, value in row.items():
        sheet.add(section, str(name), f"{LAYOUT_WORDS[name]}", value, "", "given, or the fastest that fits")
    sheet.add(section, "gradient_bytes", "bytes of a gradient", found.job.gradient_bytes, "", "4: fp32, 2: bf16")
    experts = max(found.shape.n_experts, 1)
    sheet.add(
        section,
        "micro_batches",
        "micro-batches of a replica",
        found.micro_batches,
        "",
        "batch / (dp x micro-batch), whole ones that the schedule takes",
        batch_sequences=found.job.batch,
    )
    sheet.add(section, "batch_tokens", "batch", found.tokens, "tokens", "sequences x length", asked=asked.batch_tokens)
    sheet.add(section, "batch_sequences", "", found.sequences, "sequences", "micro-batches x micro-batch x dp")
    if found.shape.sparse_layers:
        each = tokens_per_expert(found.tokens, found.shape.top_k, experts)
        sheet.add(section, "batch_tokens_per_expert", "", each, "tokens per expert", "batch x top_k / experts")
    if idle:
        inner = found.devices // int(found.layout.dp[0])
        sheet.note(
            f"{idle} devices stay idle: a replica takes {inner}, so {found.devices:,} or "
            f"{found.devices + inner:,} come out even."
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
MEMORY_WORDS = {
    "weights": "weights, 16 bit",
    "gradients": "gradients",
    "optimizer": "fp32 weights and Adam's moments",
    "gathered": "layers that ZeRO-3 holds whole",
    "activations": "activations of micro-batches in flight",
    "logits": "logits of one micro-batch",
    "reserve": "context, buffers, fragmentation",
}


def _memory(sheet: Sheet, found: Estimate) -> None:
    section = "Memory of a device on the heaviest stage"
    parts = {name: float(getattr(found.memory, name)[0]) / 1e9 for name in Memory.__dataclass_fields__}
    for name, value in parts.items():
        sheet.add(section, f"memory_{name}_gb", MEMORY_WORDS[name], value, "GB", f"docs/plan-train.md, memory: {name}")
    total = sum(parts.values())
    sheet.add(section, "memory_gb", "memory needed", total, "GB", "sum of the above")
    sheet.add(section, "device_memory_gb", "the device has", found.device.memory_gb, "GB", found.device.source)
    sheet.add(section, "fits", "fits", found.fits, "", "memory needed <= the device has")
    if not found.fits:
        sheet.note(
            f"Does not fit: {total:.1f} GB of {found.device.memory_gb:g}. See the table of what would; raise tp, pp or "
            "ep, or use devices with more memory."
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
    how = "docs/plan-train.md, time of a step; interval from the residuals of the stack"
    sheet.add(section, "step_time_s", "time", found.seconds, "s", how, stack=found.stack.name, sigma=found.sigma)
    rate = found.tokens / found.seconds.p50
    sheet.add(section, "tokens_per_s", "tokens", rate, "tokens/s", "batch / time")
    sheet.add(
        section, "tokens_per_s_per_device", "", rate / found.devices, "tokens/s per device", "batch / time / devices"
    )
    sheet.add(
        section, "mfu", "model FLOP utilisation (6 N)", found.mfu, "share", "6 x active parameters x tokens/s / peak"
    )
    attention = "3 x forward with causal scores x tokens/s / peak"
    sheet.add(
        section, "mfu_with_attention", "the same with attention scores", found.mfu_with_attention, "share", attention
    )
    sheet.add(section, "hfu", "hardware FLOP utilisation", found.hfu, "share", "with what is computed twice")
    bubble = float(found.time.bubble_fraction[0])
    sheet.add(
        section, "bubble", "pipeline bubble", bubble, "share", "(p - 1) / (v m + p - 1)", v=int(found.layout.chunks[0])
    )
    parts = {name: float(getattr(found.time, name)[0]) for name in PARTS}
    rows: list[dict[str, Value]] = [
        {"part": name.replace("_", " "), "seconds": s, "share": s / total} for name, s in parts.items() if s
    ]
    sheet.table("step_parts", "where a step's time goes", rows)


def _run(sheet: Sheet, asked: Asked, found: Estimate, prices: Prices, price: float | None, faults: Faults) -> None:
    section = "The run"
    cost = run_cost(found, asked.tokens, prices, price, faults)
    lost = outcome(found.shape.total_parameters, found.devices, faults)
    flop = 3 * parameter_flops(found.shape) * asked.tokens
    sheet.add(section, "tokens", "tokens", asked.tokens, "", "given, epochs counted")
    sheet.add(section, "training_flop", "training FLOP (6 N D)", flop, "FLOP", "6 x active parameters x tokens")
    sheet.add(section, "steps", "steps at the full batch", asked.tokens / found.tokens, "", "tokens / batch")
    formula = "training FLOP / (devices x peak x MFU x goodput)"
    sheet.add(section, "days", "days", cost.days, "d", formula, goodput=cost.goodput)
    sheet.add(section, "device_hours", "device-hours", cost.days.map(24.0 * found.devices), "h", "days x 24 x devices")
    rent = prices.rent(found.device.name) if price is None else None
    said = f"{rent.source}, {rent.date}" if rent else "given"
    at = rent.interval if rent else price
    sheet.add(section, "price_per_device_hour", "price", at, "$ per device-hour", said)
    sheet.add(section, "dollars", "cost", cost.dollars, "$", "device-hours x price")
    device, pue = found.device, prices["power.pue"].value
    power = megawatts(found.devices, device.watts, device.host_watts, utilisation=POWER_SHARE, pue=pue)
    watts = f"devices x ({POWER_SHARE} x device watts + share of its host) x PUE"
    sheet.add(section, "megawatts", "power", power, "MW", watts, watts=device.watts, host=device.host_watts, pue=pue)
    sheet.add(section, "energy_mwh", "energy", cost.mwh, "MWh", "power x 24 x days")
    section = "Failures"
    sheet.add(
        section, "mtti_h", "mean time to interruption", lost.mean / 3600, "h", "1 / (rate x devices)", rate=faults.rate
    )
    broken = cost.days.map(24 * 3600 / lost.mean)
    sheet.add(section, "failures", "interruptions in the run", broken, "", "days / mean time to interruption")
    state = lost.state / 1e12
    sheet.add(
        section, "checkpoint_tb", "checkpoint", state, "TB", "14 bytes a parameter: bf16 and fp32 weights, moments"
    )
    sheet.add(section, "checkpoint_interval_s", "interval between checkpoints", lost.interval, "s", "Daly 2006")
    sheet.add(
        section, "goodput", "goodput", lost.goodput, "share", "work kept / time; `moesaic plan failures` varies it"
    )
    sheet.add(section, "spare_nodes", "spare nodes", lost.spare_nodes, "", "99 % of the time enough, 24 h of repair")
    overall = implied_mfu(flop, found.devices, found.peak, cost.days)
    sheet.add(
        section,
        "mfu_with_failures",
        "MFU over the whole run",
        overall,
        "share",
        "training FLOP / (devices x peak x days)",
    )
    for chart in failures_sheet(found.shape, found.devices, cost.days.p50, faults).charts:
        sheet.chart(chart)
    if found.job.imbalance == 1 and found.shape.sparse_layers:
        sheet.note("Experts are taken as evenly loaded; --imbalance 1.2 prices a busiest expert of 1.2 times the mean.")


def add_days_against_devices(sheet: Sheet, rows: Sequence[dict[str, Value]]) -> None:
    """Cost against days over numbers of devices: a table and a picture."""
    sheet.table("devices_against_days", "more or fewer devices", rows)
    points = [(float(r["days"].p50), float(r["dollars"].p50) / 1e6) for r in rows]  # type: ignore[union-attr]
    sheet.chart(Chart("cost_against_days", "cost against days", "points", "days", "M$", {"devices": points}))
