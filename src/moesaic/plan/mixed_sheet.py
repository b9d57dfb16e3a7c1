"""The answer of `plan search` for several generations: each alone, replicas of one each, one pipeline over both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from moesaic.errors import PlanError
from moesaic.plan.choice import choices
from moesaic.plan.cost import product
from moesaic.plan.failures import Faults, outcome
from moesaic.plan.flops import parameter_flops
from moesaic.plan.job import Job
from moesaic.plan.mixed import Group, Mixed, Share, replica_mixed
from moesaic.plan.mixed_pipeline import pipeline_mixed, simulated
from moesaic.plan.routing import tokens_per_expert
from moesaic.plan.search import search
from moesaic.plan.shape import Shape
from moesaic.plan.sheet import Chart, Interval, Sheet, Value
from moesaic.plan.space import Space
from moesaic.plan.stack import Stack

NAMES = {"replicas": "replicas of one generation each", "pipeline": "one pipeline over both generations"}


@dataclass(frozen=True)
class Cluster:
    """What all options share. `rents`: dollars per device-hour of each group, None where nobody quotes one."""

    shape: Shape
    job: Job
    stack: Stack
    groups: Sequence[Group]
    tokens: float
    rents: Sequence[Interval | float | None]
    space: Space = field(default_factory=Space)
    faults: Faults = field(default_factory=Faults)

    @property
    def sigma(self) -> float:
        """Of the logarithm of every time."""
        return self.stack.sigma_sparse if self.shape.sparse_layers else self.stack.sigma

    def days(self, tokens_per_s: float, used: int) -> Interval:
        """Days for all tokens, failures included."""
        share = outcome(self.shape.total_parameters, used, self.faults).goodput
        return Interval.around(self.tokens / (tokens_per_s * share * 86_400), self.sigma)

    def row(
        self, name: str, tokens_per_s: float, used: Sequence[int], layout: Mapping[str, Value], paid: Sequence[int]
    ) -> dict[str, Value]:
        """One option. `used` and `paid`: devices of each group."""
        peak = sum(n * g.device.peak(self.job.precision) for n, g in zip(used, self.groups, strict=True))
        days = self.days(tokens_per_s, sum(used))
        mfu = Interval.around(tokens_per_s * 3 * parameter_flops(self.shape) / peak, self.sigma)
        out: dict[str, Value] = {
            "option": name,
            "devices_used": sum(used),
            "tokens_per_s": Interval.around(tokens_per_s, self.sigma),
            "mfu_share": Interval(mfu.p10, mfu.p50, min(mfu.p90, 1.0)),
            "days": days,
        }
        if None not in self.rents:
            ranges = [r if isinstance(r, Interval) else Interval(r, r, r) for r in self.rents if r is not None]
            each = [(r.p10 * n, r.p50 * n, r.p90 * n) for r, n in zip(ranges, paid, strict=True)]
            out["run_usd"] = product(24.0, days, Interval(*map(sum, zip(*each, strict=True))))  # rents move together
        return out | dict(layout)


def mixed_sheet(
    shape: Shape,
    job: Job,
    stack: Stack,
    groups: Sequence[Group],
    tokens: float,
    rents: Sequence[Interval | float | None],
    space: Space,
) -> Sheet:
    """Every way to use the cluster side by side, and the best one in full. Raises PlanError when nothing fits."""
    ask = Cluster(shape, job, stack, groups, tokens, rents, space)
    rows: list[dict[str, Value]] = []
    for i, g in enumerate(groups):
        found = search(shape, job, g.device, stack, g.count, space).found
        top = found.best("days", 1)
        for c in choices(shape, job, g.device, stack, top.layouts, top.gpus, top.goodput):
            only = [c.estimate.devices if j == i else 0 for j in range(len(groups))]
            paid = [g.count if j == i else 0 for j in range(len(groups))]
            rows.append(ask.row(f"{g.device.name} alone", c.tokens_per_s, only, c.layout, paid))
    options = [replica_mixed(shape, job, groups, stack, space)]
    if len(groups) == 2:
        options.append(pipeline_mixed(shape, job, groups, stack, space))
    found_options = [o for o in options if o is not None]
    everything = [g.count for g in groups]
    for o in found_options:
        by = {s.group.device.name: s.used for s in o.shares}
        used = [by[g.device.name] for g in groups]
        rows.append(ask.row(NAMES[o.kind], o.tokens_per_s, used, o.layouts.row(0), everything))
    names = ", ".join(f"{g.count:,} x {g.device.name}" for g in groups)
    if not found_options:
        alone = f"; {rows[0]['option']} works" if rows else ""
        raise PlanError(f"no layout of {shape.name} fits {names} together{alone}; give more devices, or raise --idle")
    best = max(found_options, key=lambda o: o.tokens_per_s)
    sheet = Sheet(f"{shape.name} on {names}")
    _best(sheet, ask, best)
    sheet.table("options", "Every way to use them", rows)
    sheet.table("generations", "What each generation does", [_share(s, best) for s in best.shares])
    _notes(sheet, ask, best, rows)
    lanes = [f"{s.group.device.name}" for s in best.shares]
    spans = [(i, 0.0, s.seconds, "forward") for i, s in enumerate(best.shares)]
    title = "A step: busy, then waiting for the slowest"
    sheet.chart(Chart("waiting", title, "timeline", "seconds", "generation", categories=lanes, spans=spans))
    return sheet


def _best(sheet: Sheet, ask: Cluster, best: Mixed) -> None:
    section = "Best use of the whole cluster"
    layout = best.layouts.row(0)
    degrees = " x ".join(f"{n.upper()} {layout[n]}" for n in ("tp", "pp", "cp", "dp"))
    experts = f", EP {layout['ep']} x ETP {layout['etp']}" if ask.shape.sparse_layers else ""
    sheet.add(section, "kind", "placement", NAMES[best.kind], "", "the faster of both, by tokens per second")
    sheet.add(section, "layout", "degrees", degrees + experts, "", "all that divide, compared", **layout)
    total = sum(g.count for g in ask.groups)
    sheet.add(section, "devices_used", "devices that compute", best.used, "", "of those given", given=total)
    sheet.add(section, "batch_tokens", "batch", best.tokens, "tokens", "all micro-batches x length")
    sequences = best.tokens // ask.job.seq_len
    sheet.add(section, "batch_sequences", "batch in sequences", sequences, "", "tokens / length")
    if ask.shape.sparse_layers:
        expert = tokens_per_expert(best.tokens, ask.shape.top_k, ask.shape.n_experts)
        sheet.add(
            section, "batch_tokens_per_expert", "batch of one expert", expert, "tokens", "tokens x top_k / experts"
        )
    sheet.add(
        section, "step_time_s", "step", Interval.around(best.step_s, ask.sigma), "s", "that of the slowest generation"
    )
    speed = Interval.around(best.tokens_per_s, ask.sigma)
    sheet.add(section, "tokens_per_s", "tokens per second", speed, "", "batch / step")
    sheet.add(section, "days", "days", ask.days(best.tokens_per_s, best.used), "d", "tokens / (tokens/s x goodput)")
    section = "The slowest wave"
    slowest = max(best.shares, key=lambda s: s.seconds)
    sheet.add(section, "slowest", "all wait for", slowest.group.device.label, "", "the longest busy time of a step")
    how = "1 - mean over devices of busy time / the longest: what equal speeds would not lose"
    sheet.add(section, "waiting_share", "busy time lost to waiting", best.waiting, "share", how)
    lost = Interval.around(best.waiting * best.used * 24 * ask.days(best.tokens_per_s, best.used).p50, ask.sigma)
    sheet.add(section, "lost_device_hours", "device-hours lost to it", lost, "h", "waiting x devices x 24 x days")
    if (run := simulated(best)) is not None:
        sheet.add(
            section, "simulated_step_s", "the pipeline, simulated", run.simulation.time, "s", "every operation in order"
        )
        sheet.add(section, "bound_step_s", "no schedule is faster than", run.bound, "s", "m x slowest + fill + drain")
        sheet.add(
            section, "even_stages_step_s", "the same with even stages", run.even, "s", "each stage takes the mean"
        )
        sheet.add(
            section, "uneven_stages_share", "time that uneven stages add", run.price, "share", "simulated / even - 1"
        )


def _share(s: Share, best: Mixed) -> dict[str, Value]:
    slowest = max(x.seconds for x in best.shares)
    return {
        "device": s.group.device.name,
        "devices_asked": s.group.count,
        "devices_used": s.used,
        "replicas": s.replicas,
        "stages": s.stages,
        "stage_layers": s.layers,
        "micro_batches": s.micro_batches,
        "memory_gb": s.memory / 1e9,
        "device_memory_gb": s.group.device.memory_gb,
        "busy_s": s.seconds,
        "waiting_share": 1 - s.seconds / slowest,
    }


def _notes(sheet: Sheet, ask: Cluster, best: Mixed, rows: Sequence[Mapping[str, Value]]) -> None:
    alone = [r for r in rows if str(r["option"]).endswith("alone")]
    if alone:
        top = max(alone, key=lambda r: _middle(r["tokens_per_s"]))
        gain = best.tokens_per_s / _middle(top["tokens_per_s"])
        words = f"{gain:.2f} times the tokens per second of {top['option']}"
        sheet.note(
            f"Together they reach {words}." if gain >= 1 else f"Together they reach only {words}: leave the rest."
        )
    if best.kind == "pipeline":
        order = ", then ".join(f"{s.stages} stages of {s.layers} layers on {s.group.device.name}" for s in best.shares)
        sheet.note(f"Stages in order: {order}. The last stage may hold fewer, to make {ask.shape.n_layers} in all.")
    else:
        per = ", ".join(f"{s.micro_batches} micro-batches a replica on {s.group.device.name}" for s in best.shares)
        sheet.note(f"Batch in proportion to speed: {per}. Gradients are weighted by tokens, not by replicas.")
    if len(ask.groups) > 2:
        sheet.note("One pipeline over more than two generations is not searched.")


def _middle(value: Value) -> float:
    return value.p50 if isinstance(value, Interval) else float(value or 0)
