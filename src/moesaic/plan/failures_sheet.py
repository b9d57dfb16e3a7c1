"""Failures of a run as a sheet: figures, goodput against the interval, scenarios."""

from collections.abc import Mapping

import numpy as np

from moesaic.errors import PlanError
from moesaic.plan.cost import dollars
from moesaic.plan.failures import Faults, Outcome, outcome
from moesaic.plan.goodput import goodput, goodput_first_order, young
from moesaic.plan.quantity import human, human_time
from moesaic.plan.shape import Shape
from moesaic.plan.sheet import Chart, Sheet, Value

SCENARIOS: Mapping[str, tuple[float, float]] = {
    "fast storage, quick restart": (13, 180),
    "middling": (60, 600),
    "slow storage, restart by hand": (300, 1800),
}
"""Seconds of a checkpoint and of a restart to compare with: 26 TB at 2 TB/s, at 0.43 TB/s and at 86 GB/s."""


def failures_sheet(shape: Shape, devices: int, days: float, faults: Faults, price: float | None = None) -> Sheet:
    """Failures of `days` of wall-clock time on `devices`, with `price` in dollars per device-hour. Raises PlanError."""
    if not (days > 0 and np.isfinite(days)):
        raise PlanError(f"days {days:g}: must be positive")
    found = outcome(shape.total_parameters, devices, faults)
    sheet = Sheet(f"{shape.name} on {devices:,} devices for {days:g} days")
    _often(sheet, devices, days, faults, found)
    _saving(sheet, shape, devices, faults, found)
    _lost(sheet, devices, days, faults, found, price)
    _compared(sheet, devices, found)
    if found.goodput < 0.5:
        sheet.note("More than half of the time is lost: save faster, restart faster, or use fewer devices.")
    if faults.host_copy and found.interval > found.daly:
        sheet.note(
            f"Storage takes {human_time(found.write)} for a checkpoint, so they cannot follow each other as fast as "
            f"Daly's {human_time(found.daly)}; --checkpoint-gb-s sets its speed."
        )
    return sheet


def _often(sheet: Sheet, devices: int, days: float, faults: Faults, found: Outcome) -> None:
    section = "How often it breaks"
    sheet.add(
        section,
        "failures_per_device_hour",
        "failures per device-hour",
        faults.rate,
        "",
        "given; Llama 3 saw 419 in 54 days on 16,384 GPUs (arXiv:2407.21783, sec. 3.3.4)",
    )
    sheet.add(
        section,
        "mtti_h",
        "mean time to interruption",
        found.mean / 3600,
        "h",
        "1 / (rate x devices)",
        rate=faults.rate,
        devices=devices,
    )
    sheet.add(
        section,
        "interruptions",
        "interruptions to expect",
        days * 86_400 / found.mean,
        "",
        "24 x days / MTTI",
        days=days,
        mtti_h=found.mean / 3600,
    )
    sheet.add(
        section,
        "spare_nodes",
        f"spare nodes of {faults.node} devices",
        found.spare_nodes,
        "",
        "fewest that suffice with this confidence; nodes under repair are Poisson(rate x devices x repair)",
        repair_h=faults.repair / 3600,
        confidence=faults.confidence,
    )
    sheet.add(
        section,
        "spare_share",
        "spare devices, of those that train",
        found.spare_nodes * faults.node / devices,
        "share",
        "spare nodes x devices a node / devices",
        spare_nodes=found.spare_nodes,
        devices_a_node=faults.node,
    )


def _saving(sheet: Sheet, shape: Shape, devices: int, faults: Faults, found: Outcome) -> None:
    section = "Checkpoints"
    sheet.add(
        section,
        "checkpoint_tb",
        "size",
        found.state / 1e12,
        "TB",
        "parameters x 14 bytes: bf16 weights 2, fp32 master weights and two Adam moments 12",
        parameters=human(shape.total_parameters),
    )
    sheet.add(
        section,
        "checkpoint_write_s",
        "time until it is safe on storage",
        found.write,
        "s",
        "the longer of size / storage and size / (devices x rate of each)" if faults.checkpoint is None else "given",
        storage_gb_s=faults.storage / 1e9,
        devices=devices,
        each_gb_s=None if np.isinf(faults.per_device) else faults.per_device / 1e9,
    )
    sheet.add(
        section,
        "checkpoint_stall_s",
        "time that training stands still (C)",
        found.stall,
        "s",
        "size / (devices x copy to host memory)" if faults.host_copy else "the same: training waits for storage",
    )
    sheet.add(
        section,
        "young_interval_s",
        "interval after Young",
        found.young,
        "s",
        "sqrt(2 C M), Young 1974",
        c_s=found.stall,
        m_s=found.mean,
    )
    sheet.add(
        section,
        "daly_interval_s",
        "interval after Daly",
        found.daly,
        "s",
        "sqrt(2 C M) (1 + sqrt(C / 2M) / 3 + C / 18M) - C, Daly 2006 eq. 37",
        c_s=found.stall,
        m_s=found.mean,
    )
    sheet.add(
        section,
        "checkpoint_interval_s",
        "interval used (tau)",
        found.interval,
        "s",
        "the longer of Daly's and a write that goes on behind training" if faults.host_copy else "Daly's",
        daly_s=found.daly,
        write_s=found.write if faults.host_copy else None,
    )


def _lost(sheet: Sheet, devices: int, days: float, faults: Faults, found: Outcome, price: float | None) -> None:
    section = "What is left of the time"
    sheet.add(
        section,
        "goodput_share",
        "time that is work kept (goodput)",
        found.goodput,
        "share",
        "tau / (M e^(R/M) (e^((tau + C)/M) - 1)) x (1 - share lost to slow devices)",
        tau_s=found.interval,
        c_s=found.stall,
        m_s=found.mean,
        r_s=found.down,
        slow=found.slow,
    )
    sheet.add(
        section,
        "goodput_first_order_share",
        "the same, first order",
        float(goodput_first_order(found.interval, found.stall, found.mean, found.down)) * (1 - found.slow),
        "share",
        "1 - C/tau - tau/2M - R/M",
    )
    if faults.slow_rate:
        sheet.add(
            section,
            "straggler_days",
            "days lost to slow devices",
            days * found.slow,
            "d",
            "days x P(one is slow) x (1 - 1/(1 + slowdown)); P = 1 - exp(-rate x devices x time until found)",
            rate=faults.slow_rate,
            found_h=faults.slow_found / 3600,
            slowdown=faults.slowdown,
        )
    sheet.add(section, "useful_days", "days of work in it", days * found.goodput, "d", "days x goodput", days=days)
    sheet.add(
        section,
        "same_work_days",
        "days until so many days of work are done",
        days / found.goodput if found.goodput > 0 else None,
        "d",
        "days / goodput",
        days=days,
    )
    lost = devices * 24 * days * (1 - found.goodput)
    sheet.add(section, "lost_device_hours", "device-hours lost", lost, "h", "devices x 24 x days x (1 - goodput)")
    if price is not None:
        sheet.add(
            section,
            "lost_usd",
            "dollars lost",
            float(dollars(devices, days, price)) * (1 - found.goodput),
            "$",
            "device-hours lost x price",
            price=price,
        )


def _compared(sheet: Sheet, devices: int, found: Outcome) -> None:
    marks = {"Young": found.young, "Daly": found.daly}
    if found.interval != found.daly:
        marks["used"] = found.interval
    grid = {f"{k:g} x Daly": k * found.daly for k in (0.125, 0.25, 0.5, 2, 4, 8)}
    rows: list[Mapping[str, Value]] = []
    for name, tau in sorted((grid | marks).items(), key=lambda item: item[1]):
        share = float(goodput(tau, found.stall, found.mean, found.down))
        first = float(goodput_first_order(tau, found.stall, found.mean, found.down))
        rows.append(
            {
                "interval": name,
                "checkpoint_interval_s": tau,
                "goodput_share": share,
                "goodput_first_order_share": first,
            }
        )
    sheet.table("goodput_by_interval", "Goodput against the time between checkpoints", rows)

    taus = np.geomspace(found.daly / 16, found.daly * 16, 65)
    curve = np.asarray(goodput(taus, found.stall, found.mean, found.down))
    first_order = np.asarray(goodput_first_order(taus, found.stall, found.mean, found.down))
    at = {name: float(goodput(tau, found.stall, found.mean, found.down)) for name, tau in marks.items()}
    sheet.chart(
        Chart(
            key="goodput_against_interval",
            title="Goodput against the time between checkpoints",
            kind="lines",
            x="work between checkpoints, min",
            y="share of time that is work kept",
            series={
                "exact": [(float(t) / 60, float(g)) for t, g in zip(taus, curve, strict=True)],
                "first order": [(float(t) / 60, float(g)) for t, g in zip(taus, first_order, strict=True)],
            }
            | {name: [(tau / 60, 0.0), (tau / 60, at[name])] for name, tau in marks.items()},
        )
    )

    cases = {name: (c, r) for name, (c, r) in SCENARIOS.items()} | {"this run": (found.stall, found.down)}
    sheet.table(
        "scenarios",
        f"Goodput on {devices:,} devices by time of a checkpoint and of a restart; Young's interval, this run its own",
        [
            {
                "scenario": name,
                "checkpoint_stall_s": c,
                "restart_s": r,
                "checkpoint_interval_s": (tau := found.interval if name == "this run" else float(young(c, found.mean))),
                "goodput_share": float(goodput(tau, c, found.mean, r)),
            }
            for name, (c, r) in cases.items()
        ],
    )
