"""A stack profile of one's own: the constants of a shipped one, calibrated on the logs of one's own runs."""

import copy
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from moesaic.errors import MoesaicError, PlanError
from moesaic.plan.fit import Free, Table, fit, log_ratios, residual_sigma
from moesaic.plan.flops import training_flops
from moesaic.plan.layouts import Array
from moesaic.plan.published import RATES, Row, Trial, number, question, rows
from moesaic.plan.shape import Shape
from moesaic.plan.shapes import read_shape, shape_for_row
from moesaic.plan.sheet import Sheet, Value
from moesaic.plan.stack import stack, stacks
from moesaic.recipe.show import table_to_toml

REQUIRED = (*("model", "device", "n_devices", "tp", "pp", "dp", "seq_len", "global_batch_seqs", "metric", "value"),)
PACE = 0.3  # standard deviation of the prior of log pace
MORE_FROM = 4  # runs, from which on the hardware's constants move too
MORE = {"network": 0.4, "domain": 0.3}
GEMM = 0.1
FAR = 1.5
HEAD = "# Written by `moesaic plan fit` from {} runs, starting from {}.\n\n"


@dataclass(frozen=True)
class Fitted:
    """A profile `name` in `table` (a file of stacks), the runs, and log(predicted / measured) before and after."""

    name: str
    base: str
    table: Table
    free: Sequence[Free]
    start: Table
    trials: Sequence[Trial]
    before: Array
    after: Array


def read_runs(path: Path, name: str) -> list[Trial]:
    """Runs of a CSV file as questions to the planner, for the stack `name`.

    Raises PlanError that names row and column for what is missing, no number, or cannot be.
    """
    return [_run(row, path.parent, name) for row in rows(path)]


def _run(row: Row, folder: Path, name: str) -> Trial:
    for column in REQUIRED:
        if not row[column]:
            raise PlanError(f"row {row['id']}: {column} is empty; every run needs {', '.join(REQUIRED)}")
    if row["metric"] not in RATES:
        raise PlanError(f"row {row['id']}: metric = '{row['metric']}'; known: {', '.join(RATES)}")
    number(row, "value")
    full = {**row, "category": "train", "precision": row["precision"] or "bf16"}
    asked = question(full, _shape(row, folder), name)
    if isinstance(asked, str):
        raise PlanError(f"row {row['id']}: {asked}")
    flop = training_flops(asked.shape, asked.job.seq_len) * asked.job.batch_tokens
    share = flop / (asked.published_seconds() * asked.devices * asked.device.peak(asked.job.precision))
    if share > 1:
        raise PlanError(
            f"row {row['id']}: {row['metric']} = {row['value']} {row['unit']} is {share:,.0%} of the peak of "
            f"{asked.devices} x {asked.device.label}; give value and unit (mfu takes a fraction, or unit %)"
        )
    return asked


def _shape(row: Row, folder: Path) -> Shape:
    """The model of a run: its columns, a config.json or its folder beside the CSV, a shipped name, or a recipe."""
    if (known := shape_for_row(row)) is not None:
        return known
    here = folder / row["model"]
    try:
        return read_shape(here if here.exists() else row["model"])
    except MoesaicError as error:
        raise PlanError(f"row {row['id']}: model: {error}") from error


def fit_runs(path: Path, base: str = "megatron-core", name: str = "mine", known: Path | None = None) -> Fitted:
    """The profile `base` calibrated on the runs of a CSV file. Raises PlanError."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name) or name in stacks(known):
        raise PlanError(f"name '{name}': give letters, digits, - and _ that no profile is called yet")
    using = stack(base, known)
    trials = read_runs(path, name)
    source = known or files("moesaic.plan").joinpath("stacks.toml")
    table = tomllib.loads(source.read_text(encoding="utf-8"))
    own = {**copy.deepcopy(table["common"]), **copy.deepcopy(table["stack"][base])}
    own |= {"label": f"{using.label}, calibrated on own runs", "source": path.name}
    generations = sorted({t.device.generation for t in trials})
    for generation in generations:
        own["gemm"][generation] = using.rate(using.gemm, generation)
    start = {**table, "stack": {**table["stack"], name: own}}
    free = [Free(("stack", name, "pace"), PACE)]
    if len(trials) >= MORE_FROM:
        free += [Free(("stack", name, "gemm", g), GEMM) for g in generations]
        free += [Free(("stack", name, c), sd) for c, sd in MORE.items()]
    after = fit(start, trials, free, crowd=0.0, far=FAR)
    ratios = log_ratios(after, trials)
    sparse = np.array([t.shape.n_experts > 1 for t in trials])
    mine = after["stack"][name]
    mine["sigma"] = float(f"{residual_sigma(ratios[~sparse], using.sigma):.3g}")
    mine["sigma_sparse"] = float(f"{residual_sigma(ratios[sparse], using.sigma_sparse):.3g}")
    return Fitted(name, base, after, free, start, trials, log_ratios(start, trials), ratios)


def write_stacks(path: Path, found: Fitted) -> None:
    """The profiles as a file that every verb takes with `--stacks`. Raises PlanError."""
    try:
        head = HEAD.format(len(found.trials), found.base)
        path.write_text(head + table_to_toml(found.table), encoding="utf-8")
    except OSError as error:
        raise PlanError(f"cannot write {path}: {error.strerror}") from error


def fit_sheet(found: Fitted, out: Path | None) -> Sheet:
    """What moved, and what it is worth."""
    sheet = Sheet(f"Stack '{found.name}': {found.base} calibrated on {len(found.trials)} runs")
    for when, ratios in (("before", found.before), ("after", found.after)):
        sheet.add(
            "Seconds a step",
            f"mape_{when}_share",
            f"mean absolute error {when}",
            float(np.abs(np.expm1(ratios)).mean()),
            "share",
            "mean |predicted / measured - 1|",
            runs=len(ratios),
        )
    mine, start = found.table["stack"][found.name], found.start["stack"][found.name]
    for key, label in (("sigma", "dense models"), ("sigma_sparse", "models with experts")):
        sheet.add(
            "Uncertainty",
            key,
            f"standard deviation of log(measured / predicted), {label}",
            mine[key],
            "",
            "sqrt((n s^2 + 4 s0^2) / (n + 4)): s = 1.4826 median |log ratio|, s0 that of the profile before",
            before=start[key],
        )
    moved: list[dict[str, Value]] = [
        {"constant": ".".join(f.path[2:]), "before": f.read(found.start), "after": f.read(found.table)}
        for f in found.free
    ]
    sheet.table("constants", "Constants that were free", moved)
    sheet.table("runs", "Runs", [_line(found, i) for i in range(len(found.trials))])
    if len(found.trials) < MORE_FROM:
        sheet.note(f"From {MORE_FROM} runs on, the efficiency of products and both links are calibrated too.")
    if out is None:
        sheet.note("Nothing was written; keep the profile with --out mine.toml.")
    else:
        sheet.note(f"Use it: moesaic plan train ... --stacks {out} --stack {found.name}")
    return sheet


def _line(found: Fitted, i: int) -> dict[str, Value]:
    measured = found.trials[i].published_seconds()
    before, after = float(np.exp(found.before[i])), float(np.exp(found.after[i]))
    return {
        "run": found.trials[i].row["id"],
        "measured_s": measured,
        "before_s": measured * before,
        "after_s": measured * after,
        "error_before_share": before - 1,
        "error_after_share": after - 1,
    }
