"""The tables and pictures of a training plan: what would fit, bubbles, the pipeline's first micro-batches, the ramp."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from moesaic.plan.estimate import Estimate
from moesaic.plan.layouts import FULL, RECOMPUTE, SELECTIVE
from moesaic.plan.memory import memory
from moesaic.plan.ramp import plan_ramp, ramp_notes, ramp_rows
from moesaic.plan.schedule import (
    Kind,
    advice,
    interleaved_bubble,
    offer,
    orders,
    plain_bubble,
    schedulable,
    simulate,
    zero_bubble,
)
from moesaic.plan.sheet import Chart, Sheet, Value
from moesaic.plan.step import step_time
from moesaic.plan.train import Asked
from moesaic.plan.workload import GRADIENT_BYTES

if TYPE_CHECKING:
    from moesaic.recipe import Recipe
    from moesaic.recipe.stage import Stage


SHOWN = 12  # micro-batches in the picture of the pipeline, at most


def fits(sheet: Sheet, found: Estimate) -> None:
    """Memory under every mode of recomputation and width of gradients, all else as found."""
    rows: list[dict[str, Value]] = []
    for name, width in GRADIENT_BYTES.items():
        for code, mode in enumerate(RECOMPUTE):
            layout = replace(found.layout, recompute=np.array([code]))
            need = memory(found.shape, replace(found.job, gradient_bytes=width), layout, found.stack)
            total = float(need.total[0]) / 1e9
            rows.append(
                {
                    "gradients": name,
                    "recompute": mode,
                    "activations_gb": float(need.activations[0]) / 1e9,
                    "together_gb": total,
                    "fits": total <= found.device.memory_gb,
                }
            )
    sheet.table("fits_by_choice", f"what fits {found.device.memory_gb:g} GB", rows)


def bubbles(sheet: Sheet, found: Estimate) -> None:
    """The idle share of the pipeline by schedule, by closed form and as torch counts its own table."""
    p = int(found.layout.pp[0])
    if p == 1:
        return
    per_replica = found.job.batch // int(found.layout.dp[0] * found.layout.micro_batch[0])
    per_stage = -(-found.shape.n_layers // p)
    chunks = [v for v in range(2, per_stage + 1) if -found.shape.n_layers % (p * v) <= 2]
    counts = [per_replica]
    deepest = chunks[-1] if chunks else 1
    counts += [m for m in offer(per_replica, p, deepest).best if m not in counts] if chunks else []
    rows: list[dict[str, Value]] = []
    for m in counts:
        rows.append(_bubble_row("1f1b", m, p, 1, float(plain_bubble(p, m))))
        for v in chunks:
            rows.append(_bubble_row("interleaved", m, p, v, float(interleaved_bubble(p, m, v))))
        rows.append(_bubble_row("zero_bubble", m, p, 1, float(zero_bubble(p, m))))
    sheet.table("bubbles", "pipeline bubble by schedule", rows)
    if chunks and (said := advice(per_replica, p, deepest)):
        sheet.note(said[0].upper() + said[1:] + ".")


def _bubble_row(kind: str, m: int, p: int, v: int, closed: float) -> dict[str, Value]:
    runs = v == 1 or schedulable(m, p, v)
    cells = simulate(orders("interleaved", p, m, v)).cell_bubble if v > 1 and runs else None
    return {
        "schedule": kind,
        "chunks": v,
        "micro_batches": m,
        "bubble_share": closed,
        "torch_table_share": cells,
        "runs_in_torch": runs,
        "runs_in_megatron": v == 1 or m % p == 0,
    }


def timeline(sheet: Sheet, found: Estimate) -> None:
    """The beginning of a step: what each stage computes when."""
    p, v = int(found.layout.pp[0]), int(found.layout.chunks[0])
    if p == 1:
        return
    m = found.micro_batches
    short = m
    if m > 2 * max(p, SHOWN):
        short = 2 * p
    if v > 1:
        short = max(p, short - short % p)
    kind: Kind = "zbv" if found.job.zero_bubble else "interleaved" if v > 1 else "1f1b"
    plan = simulate(orders(kind, p, short, 2 if kind == "zbv" else v))
    title = f"pipeline of {p} stages with {short} micro-batches" + ("" if short == m else f" (the step has {m})")
    sheet.chart(Chart("pipeline", title, "timeline", "units of one forward", "stage", spans=plan.spans))


def ramp(sheet: Sheet, asked: Asked, found: Estimate, recipe: Recipe, goodput: float) -> None:
    """The recipe's batch ramp on the layout as it runs, with the advice to grow data parallelism.

    Batches are those that the schedule takes; the last is the step that the sheet prices. Days count failures.
    """
    stage = _as_run(recipe.stages[0], asked, found)
    row = found.layout.row(0)
    chunks = int(found.layout.chunks[0])
    from moesaic.recipe import Layout

    layout = Layout(
        pp=row["pp"],
        dp=row["dp"],
        cp=row["cp"],
        tp=row["tp"],
        ep=row["ep"],
        zero=row["zero"] if row["zero"] != 2 else 1,
        recompute=row["recompute"],
        schedule="zero_bubble" if found.job.zero_bubble else "interleaved" if chunks > 1 else "1f1b",
    )
    flop = 6.0 * found.shape.active_parameters
    made = plan_ramp(
        stage,
        layout,
        recipe.model,
        mfu=found.mfu.p50,
        flops_per_token=flop,
        peak_flops=found.peak,
        v=chunks,
        goodput=goodput,
    )
    sheet.table("ramp", f"batch ramp of stage {stage.name}, failures counted", ramp_rows(made))
    for note in ramp_notes(made, stage, layout, chunks):
        sheet.note(note[0].upper() + note[1:] + ("" if note.endswith(".") else "."))
    full = asked.tokens * flop / (found.devices * found.peak * found.mfu.p50 * goodput * 86_400)
    if made.days > full * 1.001:
        sheet.note(
            f"The figure of {full:.1f} days has every step at the full batch; with the batch ramp it is "
            f"{made.days:.1f}. Both count failures (goodput {goodput:.1%})."
        )


def _as_run(stage: Stage, asked: Asked, found: Estimate) -> Stage:
    """The stage with the tokens asked for and batches of whole micro-batches, whole rounds where interleaved."""
    each = int(found.layout.dp[0] * found.layout.micro_batch[0]) * found.job.seq_len
    steps = []
    for step in stage.batch:
        count = step.tokens // each
        if found.layout.chunks[0] > 1 and count >= found.layout.pp[0]:
            count -= count % int(found.layout.pp[0])
        tokens = count * each or step.tokens
        if tokens < found.tokens and step.after_tokens < asked.tokens:
            steps.append(step.model_copy(update={"tokens": tokens}))
    reached = [step for step in stage.batch if step.after_tokens < asked.tokens]
    at = next((s.after_tokens for s in reached[len(steps) :]), 0 if not steps else reached[-1].after_tokens)
    steps = [s for s in steps if s.after_tokens < at]
    steps.append(reached[-1].model_copy(update={"tokens": found.tokens, "after_tokens": at}))
    update = {"batch": steps, "tokens": int(asked.tokens), "seq_len": found.job.seq_len}
    return stage.model_copy(update=update | {"micro_batch": int(found.layout.micro_batch[0])})


def partial_recomputation(sheet: Sheet, found: Estimate) -> None:
    """What recomputing only as many layers as must be would save, for trainers that can."""
    if not found.fits or int(found.layout.recompute[0]) != FULL:
        return
    less = replace(found.layout, recompute=np.array([SELECTIVE]))
    needs = float(memory(found.shape, found.job, less, found.stack).total[0])
    room = found.device.memory_gb * 1e9
    if needs <= room:
        return
    share = (needs - room) / (needs - found.bytes_needed)
    quick = float(step_time(found.shape, found.job, less, found.device, found.stack).total[0])
    seconds = quick + share * (found.seconds.p50 - quick)
    saved = 1 - seconds / found.seconds.p50
    if saved > 0.01:
        sheet.note(
            f"Recomputing {share:.0%} of the layers in full and the others selectively would fit too and take "
            f"{seconds:.1f} s a step, {saved:.0%} less (Megatron-LM has it as --recompute-num-layers)."
        )
