"""How accurate the planner is: published measurements beside its predictions, by partition, as a sheet."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesaic.plan.layouts import Array
from moesaic.plan.measured import Answer, measured
from moesaic.plan.misses import misses
from moesaic.plan.published import rows
from moesaic.plan.ranking import Ranking, rankings
from moesaic.plan.scored import Scored
from moesaic.plan.sheet import Chart, Sheet, Value
from moesaic.plan.stack import stacks

GOALS = {"dense training": 5.0, "MoE training": 10.0, "decode": 12.0, "first token": 20.0, "memory": 7.0}  # MAPE, %
FEWEST = 8  # scored check rows, or nothing is established
SPEARMAN, REGRET = 0.9, 5.0  # goals: at least, and at most %
COVERAGE = (70.0, 90.0)  # % of check rows inside their 80 % interval


@dataclass(frozen=True)
class Part:
    """The score of one partition. Errors are predicted over published, less 1, in %; NaN where there are no rows."""

    name: str
    goal: float | None
    fit: Array
    check: Array
    inside: Array  # whether each check row lies in its interval

    @property
    def mape(self) -> float:
        """Mean absolute error of the check rows."""
        return _mean(np.abs(self.check))

    @property
    def reached(self) -> str:
        """Whether the goal is met; too few rows establish nothing."""
        if len(self.check) < FEWEST:
            return "not established"
        return "-" if self.goal is None else "yes" if self.mape <= self.goal else "no"


@dataclass(frozen=True)
class Validation:
    """All rows, and what they say."""

    scored: Sequence[Scored]
    answers: Sequence[Answer]
    parts: Sequence[Part]
    rankings: Sequence[Ranking]


def validate(path: Path | None = None, using: Path | None = None) -> Validation:
    """Score a CSV of measurements (the shipped one by default) with the shipped stacks or those of a file.

    Raises PlanError when a file cannot be read; a row that cannot be compared is listed with its reason.
    """
    scored, answers = measured(rows(path), stacks(using))
    parts = [part(name, [s for s in scored if s.partition == name]) for name in GOALS]
    return Validation(scored, answers, parts, rankings(answers))


def part(name: str, members: Sequence[Scored]) -> Part:
    """The score of rows; those that do not count are passed over."""
    kept = {kind: [s for s in members if s.scored and s.split == kind] for kind in ("fit", "check")}
    errors = {kind: np.array([error(s) for s in found]) for kind, found in kept.items()}
    return Part(name, GOALS.get(name), errors["fit"], errors["check"], np.array([inside(s) for s in kept["check"]]))


def error(one: Scored) -> float:
    """Predicted over published, less 1, in %. NaN without a prediction."""
    return 100 * (one.predicted.p50 / one.published - 1) if one.predicted and one.published > 0 else float("nan")


def inside(one: Scored) -> bool:
    """Whether the published value lies in the 80 % interval."""
    return one.predicted is not None and one.predicted.p10 <= one.published <= one.predicted.p90


def validation_sheet(found: Validation, all_rows: bool = False) -> Sheet:
    """The scores as tables; `all_rows` lists every row."""
    sheet = Sheet("The planner beside published measurements")
    sheet.table("partitions", "Error by partition, over scored rows", [_part_row(p) for p in found.parts])
    _totals(sheet, found)
    sheet.table("rankings", "Layouts of one model, ordered", [_ranking_row(r) for r in found.rankings])
    sheet.table("misses", "Training by kind of run, the worst first", misses(found.answers))
    _listed(sheet, found.scored)
    if all_rows:
        told = ((a.scored.id, a.trial.row) for a in found.answers)
        printed = {id_: f"{row['value']} {'mfu' if row['metric'] == 'mfu' else row['unit']}" for id_, row in told}
        sheet.table("rows", "Every row", [_row(s, printed.get(s.id, "")) for s in found.scored])
    _errors(sheet, found.scored)
    _notes(sheet, found)
    return sheet


def _part_row(p: Part) -> dict[str, Value]:
    return {
        "partition": p.name,
        "fit_rows": len(p.fit),
        "fit_mape_share": _mean(np.abs(p.fit)) / 100,
        "check_rows": len(p.check),
        "check_mape_share": p.mape / 100,
        "check_median_share": _median(np.abs(p.check)) / 100,
        "check_bias_share": _mean(p.check) / 100,
        "goal_share": None if p.goal is None else p.goal / 100,
        "reached": p.reached,
        "inside_share": _mean(1.0 * p.inside),
    }


def _ranking_row(r: Ranking) -> dict[str, Value]:
    return {
        "set": r.name,
        "rows": r.rows,
        "check_rows": r.check_rows,
        "spearman": r.spearman,
        "regret_share": r.regret,
    }


def _row(s: Scored, printed: str) -> dict[str, Value]:
    p = s.predicted
    return {
        "row": s.id,
        "partition": s.partition,
        "split": s.split,
        "published": s.published,
        "predicted": p and p.p50,
        "p10": p and p.p10,
        "p90": p and p.p90,
        "unit": s.unit,
        "error_share": error(s) / 100,
        "as_printed": printed,
        "scored": "yes" if s.scored else s.reason,
    }


def _totals(sheet: Sheet, found: Validation) -> None:
    check = np.concatenate([p.check for p in found.parts])
    inside_ = np.concatenate([p.inside for p in found.parts])
    section = "All partitions together"
    sheet.add(
        section, "check_rows", "scored check rows", len(check), "", "16-bit rows with a published layout, split check"
    )
    sheet.add(
        section,
        "check_mape_share",
        "mean absolute error",
        _mean(np.abs(check)) / 100,
        "share",
        "mean |predicted / published - 1|",
    )
    sheet.add(
        section,
        "inside_share",
        f"published value inside the 80 % interval (goal: {COVERAGE[0]:g} to {COVERAGE[1]:g} %)",
        _mean(1.0 * inside_),
        "share",
        "share of check rows with p10 <= published <= p90",
    )
    of = found.rankings
    sheet.add(
        "Order of layouts",
        "spearman",
        f"Spearman rank correlation, mean of the sets (goal: {SPEARMAN:g})",
        _mean(np.array([r.spearman for r in of])),
        "",
        "Pearson correlation of ranks by device-seconds a step",
        sets=len(of),
        rows=sum(r.rows for r in of),
    )
    sheet.add(
        "Order of layouts",
        "regret_share",
        f"regret of the layout predicted to be best (goal: {REGRET:g} %)",
        _mean(np.array([r.regret for r in of])),
        "share",
        "its published device-seconds over those of the published best, less 1; mean of the sets",
        worst=max((r.regret for r in of), default=float("nan")),
    )
    fits = [s for s in found.scored if s.partition == "fits" and s.predicted]
    agree = sum(s.predicted is not None and s.predicted.p50 == s.published for s in fits)
    sheet.add("Memory", "fits_rows", "layouts that ran or ran out of memory", len(fits), "", "rows of metric `fits`")
    sheet.add(
        "Memory", "agreed_rows", "of them the planner agrees on", agree, "", "total bytes <= memory of the device"
    )


def _listed(sheet: Sheet, scored: Sequence[Scored]) -> None:
    """Rows that do not count, by partition and reason, with the error of those that could be priced."""
    groups = Counter((s.partition, _kind(s.reason)) for s in scored if not s.scored)
    table: list[dict[str, Value]] = []
    for (partition, reason), count in groups.items():
        errors = np.array(
            [error(s) for s in scored if (s.partition, _kind(s.reason)) == (partition, reason) and not s.scored]
        )
        known = errors[np.isfinite(errors)]
        table.append(
            {
                "partition": partition,
                "why": reason,
                "rows": count,
                "priced_rows": len(known),
                "mape_share": _mean(np.abs(known)) / 100,
            }
        )
    sheet.table("listed", "Listed and not scored", table)


def _kind(reason: str) -> str:
    """A reason without what differs from row to row: `layout: tp 72 does not divide 128 heads; ...`."""
    return re.sub(r"^(layout: \w+) \d+ does not divide \d+ (\w+);.*", r"\1 does not divide the \2", reason)


def _errors(sheet: Sheet, scored: Sequence[Scored]) -> None:
    """The picture of every scored check row's error."""
    kept = {name: [s for s in scored if s.scored and s.split == "check" and s.partition == name] for name in GOALS}
    sheet.chart(
        Chart(
            "errors",
            "Predicted over published, less 1: scored check rows",
            "points",
            "row of its partition",
            "error, %",
            {name: [(float(i), error(s)) for i, s in enumerate(found)] for name, found in kept.items() if found},
            told={name: [s.id for s in found] for name, found in kept.items() if found},
        )
    )
    training = {name: found for name, found in kept.items() if name.endswith("training") and found}
    sheet.chart(
        Chart(
            "predicted_against_published",
            "Seconds of a training step, scored check rows",
            "points",
            "published, s",
            "predicted, s",
            {name: [(s.published, middle(s)) for s in found] for name, found in training.items()},
            told={name: [s.id for s in found] for name, found in training.items()},
        )
    )


def middle(row: Scored) -> float:
    """The predicted median."""
    assert row.predicted is not None
    return row.predicted.p50


def _notes(sheet: Sheet, found: Validation) -> None:
    few = [p.name for p in found.parts if len(p.check) < FEWEST]
    if few:
        sheet.note(f"not established, with fewer than {FEWEST} scored check rows: {', '.join(few)}")
    rates = np.array([_as_printed(a) for a in found.answers if a.scored.scored and a.scored.split == "check"])
    if len(rates):
        sheet.note(
            "Training is scored in seconds a step, whatever the source prints. In the printed units (MFU, FLOP/s, "
            f"tokens/s, or seconds) the mean absolute error of its {len(rates)} check rows is {_mean(rates):.1f} %: "
            "a rate that is predicted too high has no upper bound."
        )
    sheet.note("Constants were tuned on split fit only. docs/plan-validate.md says what is scored and why.")


def _as_printed(a: Answer) -> float:
    ratio = a.seconds / a.scored.published
    return 100 * abs((ratio if a.trial.row["metric"] == "iter_time" else 1 / ratio) - 1)


def _mean(values: Array) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _median(values: Array) -> float:
    return float(np.median(values)) if len(values) else float("nan")
