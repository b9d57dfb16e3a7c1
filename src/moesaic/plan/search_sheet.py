"""The answer of `plan search`: the best layout in full, the runners-up, the Pareto fronts, what was set aside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from moesaic.errors import PlanError
from moesaic.plan.choice import Choice, choices
from moesaic.plan.device import Device
from moesaic.plan.failures import Faults
from moesaic.plan.flops import parameter_flops
from moesaic.plan.job import Job
from moesaic.plan.parts import HELD, MEMORY_WORDS, SPENT
from moesaic.plan.quantity import human
from moesaic.plan.search import Found, Objective, Search, pareto, search
from moesaic.plan.search_charts import draw
from moesaic.plan.shape import Shape
from moesaic.plan.sheet import Chart, Interval, Sheet, Value
from moesaic.plan.space import Funnel, Space, kernels, pipelines, replicas, whole
from moesaic.plan.stack import Stack

CLOUD = 400  # layouts drawn behind the front
SPENT_WORDS = {"gemm": "matrix products", "stalls": "stalls of the host", "pace": "pace of the stack"}


@dataclass(frozen=True)
class Question:
    """What is searched for. `price`: dollars per device-hour, None leaves money out."""

    shape: Shape
    job: Job
    device: Device
    stack: Stack
    gpus: Sequence[int]
    tokens: float
    objective: Objective = "days"
    top: int = 10
    price: Interval | float | None = None
    space: Space = field(default_factory=Space)
    faults: Faults = field(default_factory=Faults)

    def search(self, gpus: int) -> Search:
        """All layouts of one number of devices."""
        return search(self.shape, self.job, self.device, self.stack, gpus, self.space, self.faults)

    def choices(self, found: Found) -> list[Choice]:
        """Layouts that were found, worked out."""
        return choices(self.shape, self.job, self.device, self.stack, found.layouts, found.gpus, found.goodput)


@dataclass(frozen=True)
class Answer:
    """The best layouts over all numbers of devices, and of each number; the front of MFU and memory."""

    best: list[Choice]
    by_count: list[Choice]
    front: list[Choice]
    cloud: list[tuple[float, float]]  # GB and MFU of some that fit
    funnel: Funnel


def answer(ask: Question) -> Answer:
    """Search every number of devices. Raises PlanError that says why nothing fits and what would."""
    best: list[Choice] = []
    by_count: list[Choice] = []
    front: list[Choice] = []
    cloud: list[tuple[float, float]] = []
    funnel = Funnel()
    last: Search | None = None
    peak = ask.device.peak(ask.job.precision)
    flop = 3 * parameter_flops(ask.shape)
    for count in ask.gpus:
        last = ask.search(count)
        funnel = funnel + last.funnel
        if not len(last.found):
            continue
        top = ask.choices(_distinct(last.found, ask.objective, ask.top))
        best += top
        by_count.append(top[0])
        found = last.found[pareto(np.stack([-last.found.rate, last.found.memory], axis=1))]
        found = found[np.unique(np.stack([found.rate, found.memory]), axis=1, return_index=True)[1]]
        front += ask.choices(found)
        some = last.found[:: max(1, len(last.found) // (CLOUD // len(ask.gpus) + 1))]
        cloud += zip((some.memory / 1e9).tolist(), (some.rate * flop / peak).tolist(), strict=True)
    if not best:
        assert last is not None
        raise PlanError(why_none(ask, last))
    score = {
        "days": lambda c: -c.tokens_per_s * c.goodput,
        "cost": lambda c: -c.tokens_per_s * c.goodput / c.gpus,
        "mfu": lambda c: -c.tokens_per_s / c.estimate.devices,
    }[ask.objective]
    kept = pareto(np.array([[-c.tokens_per_s / c.estimate.devices, c.estimate.bytes_needed] for c in front]))
    front = sorted((front[i] for i in kept), key=lambda c: -c.estimate.bytes_needed)  # the highest MFU first
    return Answer(sorted(best, key=score)[: ask.top], by_count, front, cloud, funnel)


def _distinct(found: Found, objective: Objective, count: int) -> Found:
    """The best of each set of degrees: one row for all ZeRO stages and recomputations of it."""
    best = found.best(objective, 9 * count)
    L = best.layouts
    degrees = np.stack([L.tp, L.pp, L.cp, L.dp, L.ep, L.etp, L.micro_batch, L.chunks], axis=1)
    return best[np.sort(np.unique(degrees, axis=0, return_index=True)[1])[:count]]


def why_none(ask: Question, found: Search) -> str:
    """Which rule left nothing, and the nearest numbers that would do."""
    shape, job, count = ask.shape, ask.job, ask.gpus[-1]
    f = found.funnel
    if not f.fed:
        rows, pipes = kernels(shape, ask.device, job.seq_len, ask.space), pipelines(shape)
        dp = replicas(rows, pipes[:, 0], count)
        fewest = int(dp[whole(rows, pipes, dp, count, ask.space)].min())
        return (
            f"a batch of {job.batch:,} sequences feeds no layout of {shape.name} that fills {count:,} devices: the "
            f"fewest replicas are {fewest:,}; give a batch of at least {human(fewest * job.seq_len)} tokens or fewer "
            f"devices"
        )
    assert found.smallest is not None
    size, layouts = found.smallest
    row = layouts.row(0)
    more = next((n for n in (count * 2**k for k in range(1, 7)) if len(ask.search(n).found)), None)
    enough = f"; {more:,} devices would do" if more else ""
    words = ", ".join(f"{name} = {row[name]}" for name in ("tp", "pp", "cp", "dp", "ep", "zero"))
    return (
        f"no layout of {shape.name} fits the {ask.device.memory_gb:g} GB of {count:,} x {ask.device.name} ({f.fed:,} "
        f"run, all need more): the smallest needs {size / 1e9:.1f} GB at {words}, recompute {row['recompute']}{enough}"
    )


def search_sheet(ask: Question) -> tuple[Sheet, Choice]:
    """The sheet of a search and its best layout. Raises PlanError."""
    if ask.objective == "cost" and ask.price is None:
        raise PlanError(f"no rent is known for {ask.device.name}; give --price DOLLARS per device-hour")
    found = answer(ask)
    best = found.best[0]
    many = f"{best.gpus:,}" if len(ask.gpus) == 1 else f"{min(ask.gpus):,} to {max(ask.gpus):,}"
    aim = {"days": "fewest days", "cost": "fewest dollars", "mfu": "highest MFU"}[ask.objective]
    sheet = Sheet(f"{ask.shape.name} on {many} x {ask.device.label}: {aim}")
    add_best(sheet, best, ask.tokens, ask.price)
    _set_aside(sheet, found.funnel)
    sheet.table(
        "top",
        f"Best layouts by {aim}, each with its best ZeRO stage and recomputation",
        [c.row(ask.tokens, ask.price) for c in found.best],
    )
    kept = _spaced(found.front, ask.top)
    said = f"No layout has both a higher MFU and less memory ({len(kept)} of {len(found.front)})"
    sheet.table("pareto_mfu_memory", said, [_front(c) for c in kept])
    if len(ask.gpus) > 1:
        _counts(sheet, found.by_count, ask)
    draw(sheet, found.front, found.cloud, found.best, ask.device)
    _notes(sheet, best, ask)
    return sheet, best


def add_best(sheet: Sheet, best: Choice, tokens: float, price: Interval | float | None) -> None:
    """Figures of one layout. Keys are those of `plan train`."""
    layout, found = best.layout, best.estimate
    section = "Best layout"
    degrees = " x ".join(f"{name.upper()} {layout[name]}" for name in ("tp", "pp", "cp", "dp"))
    experts = f", EP {layout['ep']} x ETP {layout['etp']}" if found.shape.sparse_layers else ""
    sheet.add(section, "layout", "degrees", degrees + experts, "", "all that divide, compared", **layout)
    how = f"micro-batch {layout['micro_batch']}, {layout['chunks']} chunks a stage, ZeRO-{layout['zero']}"
    sheet.add(section, "settings", "settings", f"{how}, recompute {layout['recompute']}", "", "")
    sheet.add(section, "devices_used", "devices at work", found.devices, "", "TP x PP x CP x DP", asked=best.gpus)
    idle = best.gpus - found.devices
    sheet.add(section, "idle_devices", "devices left over", idle, "", "asked for - at work; paid all the same")
    how = "batch / (DP x micro-batch), whole rounds of PP when interleaved"
    sheet.add(section, "micro_batches", "micro-batches of a replica", found.micro_batches, "", how)
    how = "micro-batches x DP x micro-batch x length"
    sheet.add(section, "batch_tokens", "batch", found.tokens, "tokens", how, seq_len=found.job.seq_len)
    sheet.add(section, "batch_sequences", "", found.sequences, "sequences", "tokens / length")
    if found.shape.sparse_layers:
        how = "tokens x top_k / experts"
        sheet.add(section, "batch_tokens_per_expert", "", best.tokens_per_expert, "tokens per expert", how)
    section = "Memory of a device on the heaviest stage"
    for name, value in vars(found.memory).items():
        sheet.add(section, f"memory_{name}_gb", MEMORY_WORDS[name], float(value[0]) / 1e9, "GB", HELD[name])
    sheet.add(section, "memory_gb", "memory needed", found.bytes_needed / 1e9, "GB", "sum of the above")
    sheet.add(section, "device_memory_gb", "the device has", found.device.memory_gb, "GB", found.device.source)
    section = "One step"
    for name, seconds in best.seconds().items():
        sheet.add(section, f"{name}_s", SPENT_WORDS.get(name, name.replace("_", " ")), seconds, "s", SPENT[name])
    how = "sum of the parts; interval from the residuals of the stack"
    sheet.add(section, "step_time_s", "time", found.seconds, "s", how, stack=found.stack.name, sigma=found.sigma)
    m, bubble = found.micro_batches, float(found.time.bubble_fraction[0])
    how = "(p - 1) / (v m + p - 1), Narayanan et al. 2021, sec. 2.2.2"
    sheet.add(section, "bubble_share", "pipeline bubble", bubble, "share", how, p=layout["pp"], v=layout["chunks"], m=m)
    speed = Interval.around(best.tokens_per_s, found.sigma)
    sheet.add(section, "tokens_per_s", "tokens", speed, "tokens/s", "batch / time")
    how = "6 x active parameters x tokens/s / (devices at work x peak)"
    sheet.add(
        section, "mfu_share", "model FLOP utilisation (6 N)", found.mfu, "share", how, peak_tflops=found.peak / 1e12
    )
    how = "3 x forward with causal scores x tokens/s / peak"
    label = "the same with attention scores"
    sheet.add(section, "mfu_with_attention_share", label, found.mfu_with_attention, "share", how)
    section = "The run"
    sheet.add(section, "tokens", "tokens", tokens, "", "given, or the recipe's first stage")
    sheet.add(section, "goodput_share", "goodput", best.goodput, "share", "work kept / time; see moesaic plan failures")
    days = best.days(tokens)
    sheet.add(section, "days", "days", days, "d", "tokens / (tokens/s x goodput)")
    how = "24 x days x devices asked for"
    sheet.add(section, "device_hours", "device-hours", days.map(24.0 * best.gpus), "h", how)
    if price is not None:
        rent: Value = price
        sheet.add(section, "run_usd", "cost", best.dollars(tokens, price), "$", "device-hours x price", price=rent)


def _set_aside(sheet: Sheet, f: Funnel) -> None:
    section = "Layouts"
    sheet.add(
        section, "enumerated_layouts", "enumerated", f.enumerated, "", "degrees that divide the model and the node"
    )
    sheet.add(section, "whole_layouts", "leave few devices idle", f.whole, "", "--idle")
    sheet.add(
        section, "fed_layouts", "give every replica work", f.fed, "", "at least 1 micro-batch, whole rounds interleaved"
    )
    sheet.add(section, "fitting_layouts", "fit in memory", f.fit, "", "memory of the fullest device <= the device's")


def _spaced(front: Sequence[Choice], most: int) -> list[Choice]:
    """At most `most` of the front, from one end to the other."""
    return [front[i] for i in sorted({round(i) for i in np.linspace(0, len(front) - 1, min(most, len(front)))})]


def _front(c: Choice) -> Mapping[str, Value]:
    return {
        "memory_gb": c.estimate.bytes_needed / 1e9,
        "mfu_share": c.estimate.mfu,
        "devices_asked": c.gpus,
        **c.layout,
    }


def _counts(sheet: Sheet, by_count: Sequence[Choice], ask: Question) -> None:
    """The best of each number of devices, and which of them no other beats in days, dollars and devices at once."""
    points = [[c.days(ask.tokens).p50, c.gpus * c.days(ask.tokens).p50, c.gpus] for c in by_count]
    kept = set(pareto(np.array(points)).tolist())
    rows = [{"on_the_front": i in kept, **c.row(ask.tokens, ask.price)} for i, c in enumerate(by_count)]
    sheet.table("by_gpus", "Best layout of each number of devices; on the front of days, dollars and devices", rows)
    line = [(float(c.gpus), c.days(ask.tokens).p50) for c in by_count]
    sheet.chart(Chart("days_by_gpus", "Days against devices", "lines", "devices", "days", {"best layout": line}))
    if ask.price is not None:
        cost = [(c.days(ask.tokens).p50, p.p50 / 1e6) for c in by_count if (p := c.dollars(ask.tokens, ask.price))]
        told = {"best layout": [f"{c.gpus:,} devices" for c in by_count]}
        title = "Dollars against days"
        sheet.chart(Chart("usd_by_days", title, "points", "days", "M$", {"best layout": cost}, told=told))


def _notes(sheet: Sheet, best: Choice, ask: Question) -> None:
    layout, found = best.layout, best.estimate
    if idle := best.gpus - found.devices:
        used = f"{found.devices:,}"
        sheet.note(f"{used} of {best.gpus:,} devices work; {idle:,} idle and are paid for: ask for {used}.")
    if found.sequences != ask.job.batch:
        rounds = f" in whole rounds of pp = {layout['pp']}" if layout["chunks"] != 1 else ""
        sheet.note(
            f"Of {ask.job.batch:,} sequences a step takes {found.sequences:,}: {found.micro_batches} micro-batches"
            f"{rounds} on {layout['dp']} replicas. Layouts are compared by tokens per second."
        )
    if found.shape.sparse_layers and ask.job.imbalance == 1:
        sheet.note("Experts are taken as evenly loaded; --imbalance 1.2 prices a busiest expert of 1.2 times the mean.")
    half = 100 * (np.exp(0.6745 * found.sigma) - 1)
    sheet.note(
        f"Times are those of {ask.stack.label}: half of such runs lie within {half:.0f} % of the median. Rows "
        "that differ by less may change places."
    )
