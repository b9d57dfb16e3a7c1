"""One scenario taken apart: each figure with its formula and the inputs of it, at their medians."""

from moesaic.plan.compare.choose import Priced
from moesaic.plan.compare.uncertainty import quantiles
from moesaic.plan.sheet import Sheet, Value


def take_apart(sheet: Sheet, p: Priced) -> None:
    """Add the figures of one scenario."""
    case, c, m = p.case, p.sampled, p.middle
    s = case.scenario
    head = s.name
    mid = {key: i.interval.p50 for key, i in case.inputs.items()}
    name = s.device.name
    if run := case.run:
        inputs = {
            "tokens": run.tokens,
            "devices": run.devices,
            "mfu": mid[f"mfu.{name}"],
            "goodput": float(m.goodput[0]),
        }
        formula = "6 x active parameters x tokens / (devices x peak x MFU x goodput)"
        sheet.add(head, "days", "training", quantiles(c.days), "days", formula, **inputs)
        if s.mode == "rent":
            assert case.rent
            formula = "devices x 24 x days x rent + storage x rent of storage x months"
            price = {"rent": case.rent.interval.p50, "storage_tb": case.storage_tb}
            sheet.add(head, "run_usd", "a training run", quantiles(c.run), "$", formula, devices=run.asked, **price)
        else:
            formula = "(amortisation + power + hall + operation of the training machine) x days / 365 / busy share"
            assert m.training
            sheet.add(
                head, "run_usd", "a training run", quantiles(c.run), "$", formula, busy_share=mid["busy"],
                machine_usd_per_year=float(m.training.per_year[0]),
            )  # fmt: skip
    if case.cluster and m.capacity:
        g = case.cluster.given
        sheet.add(
            head, "requests_per_s_per_cluster", "a cluster serves", float(m.capacity.requests_per_s[0]), "requests/s",
            "most over the loads at which time to first token and between tokens keep their targets: "
            "sequences / (first token + (output - 1) x time between tokens)",
            sequences=int(m.capacity.sequences[0]), first_token_s=float(m.capacity.first_s[0]),
            token_s=float(m.capacity.token_s[0]), ttft_s=g.ttft_s, tpot_ms=g.tpot_ms,
        )  # fmt: skip
        sheet.add(
            head, "clusters", "clusters", quantiles(c.clusters), f"of {case.cluster.model.devices} devices",
            "ceil(requests/s x peak over mean / requests/s of a cluster)", requests_per_s=mid["demand"],
            peak_over_mean=g.peak_over_mean,
        )  # fmt: skip
        sheet.add(
            head, "served_usd_per_1k_tokens", "tokens served", quantiles(c.million_tokens / 1e3), "$ per 1k tokens",
            "dollars a year of all clusters / (requests a year x (prompt + output))", prompt=g.prompt, output=g.output,
            served_usd_per_year=float(m.served[0]),
        )  # fmt: skip
    sheet.add(
        head, "power_mw", "power", quantiles(c.megawatts), "MW",
        "devices x (draw share x device watts + share of its host) x PUE", draw_share=s.money.draw_share,
        watts=s.device.watts, host_watts=s.device.host_watts, pue=mid["pue"],
    )  # fmt: skip
    bought: dict[str, Value] = {"mode": s.mode}
    if s.mode == "buy" and case.purchase:
        bought |= {"device_usd": case.purchase.interval.p50, "network_usd": mid["network"], "spares": case.spare_share}
        bought |= {"storage_tb": case.storage_tb, "usd_per_tb": mid["storage_bought"]}
    sheet.add(
        head, "capex_usd", "up front", quantiles(c.capex) if s.mode == "buy" else 0.0, "$",
        "devices x (1 + spares) x (price + network) + storage x price of storage; 0 where rented", **bought,
    )  # fmt: skip
    how: dict[str, Value] = {"mode": s.mode}
    if s.mode == "buy":
        parts = [o for o in (m.training, m.serving) if o]
        how |= {k: sum(float(getattr(o, k)[0]) for o in parts) for k in ("energy", "hall", "operation", "amortisation")}
    sheet.add(
        head, "opex_usd_per_year", "running cost", quantiles(c.opex), "$ a year",
        "bought: MW x 8,760 h x price of power + kW x rent of the hall x 12 + operation share x capex; "
        "rented: the rent", **how,
    )  # fmt: skip
    sheet.add(
        head, "total_usd_per_year", "all in all", quantiles(c.per_year), "$ a year",
        "runs a year x a training run + serving; what is bought is amortised in a straight line",
        runs_per_year=case.run.given.runs_per_year if case.run else 0, residual_share=s.money.residual_share,
        interest=s.money.interest_per_year, years=mid.get("years"),
    )  # fmt: skip
