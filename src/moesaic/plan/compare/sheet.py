"""The decision page: scenarios side by side, which to take for which aim, rent or buy, and what the answer hangs on."""

from collections.abc import Sequence

import numpy as np

from moesaic.plan.compare.apart import take_apart
from moesaic.plan.compare.choose import Choice, Priced, Swing, tornado, turning
from moesaic.plan.compare.money import break_even_months, break_even_share
from moesaic.plan.compare.uncertainty import Numbers, quantiles
from moesaic.plan.sheet import Chart, Interval, Sheet, Value


def comparison_sheet(priced: Sequence[Priced], chosen: Sequence[Choice], shown: Priced, title: str) -> Sheet:
    """Everything that `moesaic plan compare` says; `shown` is the scenario taken apart."""
    sheet = Sheet(title)
    sheet.table("recommended", "Which to take", [_choice(c) for c in chosen], first=True)
    take_apart(sheet, shown)
    sheet.table("scenarios", "Scenarios", [_row(p) for p in priced])
    if any(p.case.run for p in priced):
        sheet.table("training", "Training", [_training(p) for p in priced if p.case.run])
    if any(p.case.cluster for p in priced):
        sheet.table("serving", "Serving", [_serving(p) for p in priced if p.case.cluster])
    rows = [row for p in priced for row in _rent_or_buy(p)]
    if rows:
        sheet.table("rent_or_buy", "Rent or buy", rows)
    base, found = tornado(shown, priced)
    sheet.table("tornado", f"What the dollars a year of {shown.name} hang on", [_swing(s) for s in found])
    _charts(sheet, priced, shown, base, found)
    _notes(sheet, priced, chosen)
    return sheet


def _known(values: Numbers, scale: float = 1.0) -> Interval | None:
    """Quantiles, or nothing where a scenario has no such thing."""
    return None if np.isnan(values).all() else quantiles(np.asarray(values) / scale)


def _row(p: Priced) -> dict[str, Value]:
    s, c = p.case.scenario, p.sampled
    return {
        "scenario": p.name,
        "hardware": f"{s.count:,} x {s.device.name}" if s.count else s.device.name,
        "mode": s.mode,
        "days": _known(c.days),
        "run_usd": _known(c.run),
        "served_usd_per_1k_tokens": _known(c.million_tokens, 1e3),
        "clusters": _known(c.clusters),
        "meets_latency": bool(p.middle.capacity.meets[0]) if p.middle.capacity else None,
        "power_mw": _known(c.megawatts),
        "capex_usd": _known(c.capex) if s.mode == "buy" else None,
        "opex_usd_per_year": _known(c.opex),
        "total_usd_per_year": _known(c.per_year),
        "obstacle": p.obstacle or None,
        "fits": not p.obstacle,
    }


def _choice(c: Choice) -> dict[str, Value]:
    return {
        "aim": c.aim.label,
        "scenario": c.best.name,
        "value": c.value,
        "unit": c.aim.unit,
        "next": c.next.name if c.next else None,
        "next_value": c.next_value,
        "chance_share": c.chance,
        "reason": c.reason,
    }


def _training(p: Priced) -> dict[str, Value]:
    run = p.case.run
    assert run
    claimed = run.given.claimed_days
    shares = p.case.inputs[f"mfu.{p.case.scenario.device.name}"].interval
    return {
        "scenario": p.name,
        "devices_used": run.devices,
        "layout": run.layout_words(),
        "mfu_share": shares,
        "goodput_share": None if run.whole else quantiles(p.sampled.goodput),
        "device_hours": float(p.middle.days[0]) * 24 * run.asked,
        "spare_nodes": run.spare_nodes,
        "storage_tb": p.case.storage_tb,
        "claimed_days": claimed,
        "claimed_mfu_share": run.implied_mfu(claimed) if claimed else None,
        "fits": run.fits,
    }


def _serving(p: Priced) -> dict[str, Value]:
    found, c, state = p.case.cluster, p.middle, p.middle.capacity
    assert found is not None
    assert state is not None
    return {
        "scenario": p.name,
        "layout": found.layout_words(),
        "weights": found.given.weights,
        "cluster_devices": found.model.devices,
        "in_flight_sequences": int(state.sequences[0]),
        "requests_per_s_per_cluster": float(state.requests_per_s[0]),
        "ttft_s": float(state.first_s[0]),
        "tpot_ms": float(state.token_s[0]) * 1e3,
        "devices_used": p.serving_devices,
        "utilisation_share": float(c.utilisation[0]),
        "serving_usd_per_year": quantiles(p.sampled.served),
        "meets_latency_share": float(np.mean(p.sampled.capacity.meets)) if p.sampled.capacity else None,
        "fits": bool(c.meets[0]),
    }


def _rent_or_buy(p: Priced) -> list[dict[str, Value]]:
    """For each machine whose rent and price are both known: at what use, and after how long, buying is cheaper."""
    case = p.case
    if case.rent is None or case.purchase is None:
        return []
    rent = case.rent.interval.p50
    out: list[dict[str, Value]] = []
    machines = []
    if case.run:
        machines.append(("training", float(case.run.asked), case.spare_share, case.storage_tb))
    if case.cluster:
        n = float(p.serving_devices)
        machines.append(("serving", n, case.serving_spares(np.array([n]))[0] / n, 0.0))
    for part, devices, spare, storage in machines:
        own = case.own(devices, spare, storage, {})
        busy = case.inputs["busy"].interval.p50 if part == "training" else 1.0
        months = float(break_even_months(own.capex, own.opex, devices, rent, busy)[0])
        hours = devices * 8760 * busy
        out.append(
            {
                "scenario": p.name,
                "machine": part,
                "devices_asked": int(devices),
                "rent_usd_per_device_hour": rent,
                "own_usd_per_device_hour": float(own.per_year[0]) / hours,
                "busy_share": busy,
                "break_even_share": float(break_even_share(own.per_year, devices, rent)[0]),
                "break_even_months": months if np.isfinite(months) else None,
                "life_months": case.inputs["years"].interval.p50 * 12,
                "cheaper": "buy" if float(own.per_year[0]) < hours * rent else "rent",
            }
        )
    return out


def _swing(s: Swing) -> dict[str, Value]:
    i = s.input
    return {
        "input": i.label,
        "unit": i.unit,
        "p10": i.interval.p10,
        "p50": i.interval.p50,
        "p90": i.interval.p90,
        "p10_usd_per_year": s.low,
        "p90_usd_per_year": s.high,
        "swing_usd_per_year": s.size,
        "cheapest_at_p10": s.cheapest_low,
        "cheapest_at_p90": s.cheapest_high,
        "source": i.source,
    }


def _charts(sheet: Sheet, priced: Sequence[Priced], shown: Priced, base: float, found: Sequence[Swing]) -> None:
    if found:
        sheet.chart(
            Chart(
                "tornado_chart", f"What the dollars a year of {shown.name} hang on", "tornado", "input, p10 to p90",
                "M$ a year",
                {"low": [(i, s.low / 1e6) for i, s in enumerate(found)],
                 "high": [(i, s.high / 1e6) for i, s in enumerate(found)]},
                categories=[s.input.label for s in found], marks=[(base / 1e6, "all at p50")],
            )
        )  # fmt: skip
    parts: dict[str, list[tuple[float, float]]] = {}
    for i, p in enumerate(priced):
        for name, dollars in _parts(p).items():
            if dollars > 0:
                parts.setdefault(name, []).append((i, dollars / 1e6))
    sheet.chart(
        Chart(
            "cost_by_scenario", "Dollars a year at the medians", "bars", "scenario", "M$ a year", parts,
            categories=[p.name for p in priced],
        )
    )  # fmt: skip
    runs = {p.name: [(float(p.middle.days[0]), float(p.middle.run[0]) / 1e6)] for p in priced if p.case.run}
    if len(runs) > 1:
        sheet.chart(Chart("run_against_days", "A training run: cost against days", "points", "days", "M$", runs))


def _parts(p: Priced) -> dict[str, float]:
    """Dollars a year by what they are spent on, at the medians."""
    m = p.middle
    total = float(m.per_year[0])
    if p.case.scenario.mode == "rent":
        served = float(m.served[0]) if p.case.cluster else 0.0
        return {"rent, training": total - served, "rent, serving": served}
    out = dict.fromkeys(("amortisation", "power", "hall", "operation"), 0.0)
    for own, share in ((m.training, _used(p)), (m.serving, 1.0)):
        if own:
            for name, value in zip(out, (own.amortisation, own.energy, own.hall, own.operation), strict=True):
                out[name] += float(value[0]) * share
    return out


def _used(p: Priced) -> float:
    """Share of a bought training machine's year that the runs are charged."""
    if p.case.run is None or p.middle.training is None:
        return 0.0
    return float(p.case.run.given.runs_per_year * p.middle.run[0] / p.middle.training.per_year[0])


def _notes(sheet: Sheet, priced: Sequence[Priced], chosen: Sequence[Choice]) -> None:
    for c in chosen:
        if c.aim.key == "least_per_year":
            turned = turning(c.best, priced)
            words = "; ".join(f"{one.label} ({low} at p10, {high} at p90)" for one, low, high in turned[:4])
            sheet.note(
                f"{c.best.name} costs least a year: {c.reason}. "
                + (f"One input alone can turn that: {words}." if turned else "No input alone turns that.")
            )
    for p in priced:
        if p.obstacle:
            sheet.note(f"{p.name} is not recommended for anything: {p.obstacle}.")
        run = p.case.run
        if run and run.given.claimed_days:
            implied = run.implied_mfu(run.given.claimed_days)
            likely = p.case.inputs[f"mfu.{p.case.scenario.device.name}"].interval
            word = "above" if implied > likely.p90 else "below" if implied < likely.p10 else "inside"
            sheet.note(
                f"{p.name}: {run.given.claimed_days:g} days would imply {100 * implied:.0f} % MFU over the run, {word} "
                f"the {100 * likely.p10:.0f} to {100 * likely.p90:.0f} % of this plan."
            )
        if run and run.devices < (p.case.scenario.count or 0):
            spare = (p.case.scenario.count or 0) - run.devices
            sheet.note(f"{p.name}: {spare} devices are left over by the layout and paid all the same.")
        if run and run.found is None:
            sheet.note(f"{p.name}: MFU is given, so neither layout nor memory is checked.")
    work = {(p.case.scenario.training and _work(p)) for p in priced}
    asked = {p.case.scenario.serving and (p.case.scenario.serving.source, p.case.scenario.serving.requests_per_s,
             p.case.scenario.serving.prompt, p.case.scenario.serving.output) for p in priced}  # fmt: skip
    if len(work) > 1 or len(asked) > 1:
        sheet.note("The scenarios do different work (model, tokens or demand): compare their totals with care.")
    sheet.note(
        "Prices, efficiencies and demand are drawn as log-normals, shared where scenarios share them; p10, p50 and p90 "
        "are of the draws. Rent includes power, hall and repair. `--prices` lays yours over the dated ones."
    )


def _work(p: Priced) -> tuple[str, float, float]:
    run = p.case.run
    assert run
    return run.given.source, run.tokens, run.given.runs_per_year
