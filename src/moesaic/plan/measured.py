"""Each published measurement beside its prediction: steps of training, memory, failures; and serving, from its room.

A row counts when it ran in 16 bit with a published layout. Others are listed, with the reason.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moesaic.errors import PlanError
from moesaic.plan.failures import Faults, outcome
from moesaic.plan.goodput import LLAMA3_RATE
from moesaic.plan.layouts import Layouts
from moesaic.plan.memory import FRAGMENTATION, Memory
from moesaic.plan.published import HALF, MEMORY_SIGMA, Row, Trial, check_counts, number, question, settings
from moesaic.plan.scored import Scored
from moesaic.plan.serving.rows import scored_rows
from moesaic.plan.shapes import shape_for_row
from moesaic.plan.sheet import Interval
from moesaic.plan.stack import Stack

UNITS = {"GIB": 2.0**30, "GB": 1e9, "MIB": 2.0**20, "MB": 1e6}
COMPONENTS = {
    "mem_activations": "activations",
    "mem_param_opt": "states",
    "peak_memory": "allocated",
}


@dataclass(frozen=True)
class Answer:
    """A run of training that could be priced: what was asked, the layout that the planner took, seconds a step."""

    trial: Trial
    layout: Layouts
    seconds: float
    scored: Scored


def measured(rows: Sequence[Row], stacks: Mapping[str, Stack]) -> tuple[list[Scored], list[Answer]]:
    """Every row in order, and what of it is a run of training. No row raises: what cannot be read has its reason."""
    out: list[Scored] = []
    answers: list[Answer] = []
    for row in rows:
        kind = row["category"]
        try:
            if kind == "train":
                found = training(row, stacks)
                if isinstance(found, Answer):
                    answers.append(found)
                    found = found.scored
            elif kind == "memory":
                found = fitting(row, stacks) if row["metric"] == "fits" else memory_row(row, stacks)
            elif kind == "reliability":
                found = reliability(row)
            elif kind == "infer":
                out += serving(row)
                continue
            else:
                found = listed(row, "other", f"category '{kind}' is none of train, memory, reliability, infer")
        except PlanError as error:
            found = listed(row, "other", str(error))
        out.append(found)
    return out, answers


def listed(row: Row, partition: str, reason: str, predicted: Interval | None = None) -> Scored:
    """A row that does not count."""
    try:
        value = float(row["value"])
    except ValueError:
        value = math.nan
    return Scored(row["id"], split(row), partition, row["unit"], value, predicted, False, reason)


def split(row: Row) -> str:
    """`fit`, or `check` for whatever is not marked as used."""
    return "fit" if row["split"] == "fit" else "check"


def training(row: Row, stacks: Mapping[str, Stack]) -> Answer | Scored:
    """Seconds a step, whichever way the row says how fast it ran."""
    sparse = row["n_experts"].isdecimal() and int(row["n_experts"]) > 1
    asked = question(row)
    if isinstance(asked, str):
        return listed(row, "MoE training" if sparse else "dense training", asked)
    using = settings(row, stacks[asked.stack])
    layout, seconds, _ = asked.best(using)
    sparse = asked.shape.n_experts > 1
    predicted = Interval.around(seconds, using.sigma_sparse if sparse else using.sigma)
    reason = below(row)
    scored = Scored(
        row["id"],
        split(row),
        "MoE training" if sparse else "dense training",
        "s",
        asked.published_seconds(),
        predicted,
        not reason,
        reason,
    )
    return Answer(asked, layout, seconds, scored)


def below(row: Row) -> str:
    """Why the precision of a row keeps it from counting."""
    return "" if row["precision"] in HALF else f"{row['precision'] or 'no precision'}: only 16 bit is scored"


def memory_row(row: Row, stacks: Mapping[str, Stack]) -> Scored:
    """The component of memory that a row gives, on the heaviest stage."""
    asked, unit = question(row), UNITS.get(row["unit"].upper())
    if row["metric"] not in COMPONENTS or unit is None:
        return listed(row, "memory", f"metric '{row['metric']}' in '{row['unit']}' is none that is known")
    if isinstance(asked, str):
        return listed(row, "memory", asked)
    _, _, space = asked.best(settings(row, stacks[asked.stack]))
    predicted = Interval.around(component(space, row) / unit, MEMORY_SIGMA)
    value, reason = number(row, "value"), below(row)
    return Scored(row["id"], split(row), "memory", row["unit"], value, predicted, not reason, reason)


def component(space: Memory, row: Row) -> float:
    """Bytes of what a row measures.

    Megatron-LM reports what its allocator hands out; torchtitan what the allocator has taken from the device
    (`max_reserved`), which is larger by the fragmentation.
    """
    states = space.weights + space.gradients + space.optimizer
    allocated = space.allocated * (1 + FRAGMENTATION if "torchtitan" in row["source"] else 1.0)
    kinds = {"activations": space.activations, "states": states, "allocated": allocated}
    return float(np.asarray(kinds[COMPONENTS[row["metric"]]])[0])


def fitting(row: Row, stacks: Mapping[str, Stack]) -> Scored:
    """Whether a layout fits at all: 1 when any setting that the row leaves open does."""
    asked = question(row)
    if isinstance(asked, str):
        return listed(row, "fits", asked)
    if row["value"] not in ("0", "1"):
        return listed(row, "fits", f"value '{row['value']}' is neither 0 nor 1")
    _, _, space = asked.best(settings(row, stacks[asked.stack]))
    fits = float(space.total[0] <= asked.device.memory_gb * 1e9)
    return listed(row, "fits", "yes or no: agreement is counted", Interval(fits, fits, fits))


def reliability(row: Row) -> Scored:
    """Failures per device-hour, and the share of time that is work, which sources give as a lower bound."""
    value = number(row, "value")
    if row["metric"] == "unexpected_interruptions_per_gpu_hour":
        known = Interval(LLAMA3_RATE, LLAMA3_RATE, LLAMA3_RATE)
        return listed(row, "reliability", "the planner's own rate: it comes from this row", known)
    if row["metric"] != "effective_training_time":
        return listed(row, "reliability", f"metric '{row['metric']}' is none that is known")
    shape = shape_for_row(row)
    if shape is None or not row["n_devices"].isdecimal():
        return listed(row, "reliability", "size of model and checkpoint not published")
    share = outcome(shape.total_parameters, int(row["n_devices"]), Faults()).goodput
    holds = "holds" if share >= value else "does not hold"
    return listed(row, "reliability", f"a lower bound, which {holds}", Interval(share, share, share))


def serving(row: Row) -> list[Scored]:
    """Rows of inference: one answer, or two where the notes give a time to first token."""
    for column in ("value", "input_len", "output_len"):
        if row[column] or column == "value":
            number(row, column)
    check_counts(row)
    return scored_rows([{**row, "split": split(row)}])
