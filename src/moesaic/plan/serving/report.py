"""The sheet of `moesaic plan serve`: what fits, how fast, for how much, and what each answer hangs on."""

import numpy as np

from moesaic.errors import PlanError
from moesaic.plan.serving import report_extra as extra
from moesaic.plan.serving.batching import ReplicaTimer
from moesaic.plan.serving.cost import curve
from moesaic.plan.serving.memory import tightest
from moesaic.plan.serving.profile import Profile
from moesaic.plan.serving.question import Question, batches_of, sigmas
from moesaic.plan.serving.report_cost import costs
from moesaic.plan.serving.report_memory import head_table, memory, stage_table
from moesaic.plan.sheet import Sheet


def serve_sheet(q: Question, constants: Profile) -> Sheet:
    """Answer. Raises PlanError when nothing fits, a batch does not, or a rate is too high."""
    m = q.model
    sheet = Sheet(
        f"Serving {m.shape.name}: {m.devices} x {m.device.label}, tp {m.tp} x pp {m.pp}"
        + (f" x dp {m.dp}" if m.dp > 1 else "")
        + (f", ep {m.ep}" if m.ep > 1 else "")
        + f", {m.weights} weights, {m.kv} cache, context {q.context:,}"
    )
    timer = ReplicaTimer(m, constants, q.engine, q.first)
    stage, tight = tightest(m, q.context, q.first, q.chunk)
    if tight.free_bytes <= 0:
        raise PlanError(
            f"weights of {tight.weight_bytes / 1e9:.1f} GB and a reserve of {tight.reserve_bytes / 1e9:.1f} GB exceed "
            f"{m.device.memory_gb:g} GB on stage {stage.index}; "
            "use 8-bit weights, more stages (--pp) or a device with more memory"
        )
    memory(sheet, q, tight)
    paged = tightest(m, q.work.context, q.first, q.chunk)[1].sequences
    most = paged // (m.pp * m.dp)
    batches = batches_of(q, most, paged)
    found = curve(timer, np.array(batches, float), q.work, q.usd_per_gpu_hour, q.chunk)
    stage_table(sheet, q, timer, float(max(min(most, max(batches)), 1)))
    head_table(sheet, q)
    sigma = sigmas(q, constants)
    costs(sheet, q, timer, found, most, sigma)
    if q.target_usd is not None:
        extra.target(sheet, q, timer, most)
    if q.rate is not None:
        extra.arrivals(sheet, q, timer, paged, sigma)
    if q.pools:
        extra.pools(sheet, q, timer, float(max(most, 1)))
    if q.drafts:
        extra.drafts(sheet, q, timer, found)
    if q.other is not None:
        extra.comparison(sheet, q, constants)
    assumptions(sheet, q)
    return sheet


def assumptions(sheet: Sheet, q: Question) -> None:
    """Say what was assumed, and what the layout costs that no figure shows."""
    m = q.model
    sheet.note(
        f"assumed: {q.work.prompt:,.0f} prompt and {q.work.output:,.0f} output tokens a request (cached on average "
        f"{q.work.context:,.0f}); {q.price_words}; "
        f"engine {q.engine}; chunks of {q.chunk:,} prompt tokens; routing without preference; "
        f"cache allocated as it grows"
    )
    wanted = {"nvfp4": "fp4", "mxfp4": "fp4", "int4": "fp16", "bf16": "fp16"}.get(m.weights, m.weights)
    if wanted != "fp16" and wanted not in m.device.tflops:
        sheet.note(f"{m.device.label} has no {wanted} arithmetic: {m.weights} weights are multiplied in 16 bit")
    if q.clusters > 1:
        sheet.note(f"{q.clusters} replicas of {m.devices} devices: rates are of one replica, costs are the same")
    if m.tp > m.device.domain:
        sheet.note(
            f"tp {m.tp} crosses the fast domain of {m.device.domain} devices: all-reduces run at network speed; "
            f"tp {m.device.domain} or less would not"
        )
    if m.shape.n_kv_heads < m.tp and not m.shape.latent:
        sheet.note(
            f"{m.shape.n_kv_heads} key/value head(s) over tp {m.tp}: replicated, "
            "so a device holds as much cache as with "
            f"{m.tp} heads"
        )
