"""The parts of the sheet that are asked for: a target price, a load, pools, drafts, another model."""

import numpy as np

from moesaic.errors import PlanError
from moesaic.plan.serving import against as versus
from moesaic.plan.serving.batching import ReplicaTimer
from moesaic.plan.serving.cost import Curve, batches_for, disaggregated
from moesaic.plan.serving.profile import Profile
from moesaic.plan.serving.question import Question
from moesaic.plan.serving.speculation import speedup, textbook_speedup
from moesaic.plan.sheet import Interval, Sheet

POOL_CHUNK = 8192  # prompt tokens of one pass of a replica that only prefills


def target(sheet: Sheet, q: Question, timer: ReplicaTimer, most: int) -> None:
    """The batch that a price per token asks for, and whether it fits."""
    assert q.target_usd is not None
    if q.target_usd <= 0:
        raise PlanError(f"target {q.target_usd:g}: give dollars per 1k tokens, more than 0")
    output, mixed = batches_for(timer, q.target_usd, q.work, q.usd_per_gpu_hour, q.chunk)
    name = f"for ${q.target_usd:g} per 1k tokens"
    for key, label, need in (
        ("output", "output tokens, decode alone", output),
        ("mixed", "all tokens, prompts included", mixed),
    ):
        formula = "smallest batch of a micro-batch whose cost is no more than the target"
        sheet.add(name, f"target_{key}_sequences", label, need, "sequences", formula, cached_tokens=q.work.context)
        fits = need is not None and need <= most
        sheet.add(name, f"target_fits_{key}", "  and it fits", fits, "", "batch <= capacity", capacity=most)


def arrivals(sheet: Sheet, q: Question, timer: ReplicaTimer, paged: int, sigma: tuple[float, float]) -> None:
    """Latency and cost at a rate of requests."""
    assert q.rate is not None
    if q.rate <= 0:
        raise PlanError(f"rate {q.rate:g}: give requests per second, more than 0")
    load = timer.open(q.rate, q.work.prompt, q.work.output, paged, q.chunk)
    name = f"at {q.rate:g} requests/s on each replica"
    sheet.add(
        name,
        "concurrent_requests",
        "requests in the system",
        float(load.concurrency[0]),
        "requests",
        "Little's law: rate x (first token + output x time between tokens)",
        requests_per_s=q.rate,
    )
    sheet.add(
        name,
        "rate_tpot_ms",
        "between tokens",
        Interval.around(float(load.token_s[0]) * 1e3, sigma[0]),
        "ms",
        "step + decoding / output x time of a prompt",
    )
    sheet.add(
        name,
        "rate_ttft_s",
        "time to first token",
        Interval.around(float(load.first_s[0]), sigma[1]),
        "s",
        "request overhead + chunks through the pipeline + queue",
    )
    per_hour = q.usd_per_gpu_hour * q.model.devices
    sheet.add(
        name,
        "rate_usd_per_1k_tokens",
        "cost of all tokens at that rate",
        per_hour / 3600 / q.rate / q.work.total * 1e3,
        "$ per 1k tokens",
        "devices x price / (rate x (prompt + output))",
    )


def pools(sheet: Sheet, q: Question, timer: ReplicaTimer, batch: float) -> None:
    """Prefill and decode on replicas of their own; a prefill replica takes long chunks, having no cache to keep."""
    chunk = max(q.chunk, POOL_CHUNK)
    pools = disaggregated(timer, batch, q.work, q.usd_per_gpu_hour, chunk)
    name = "prefill and decode on replicas of their own"
    sheet.add(
        name,
        "prefill_share",
        "replicas that prefill",
        pools.prefill_share,
        "share",
        "t_prefill / (t_prefill + t_decode) per request",
        batch=batch,
    )
    sheet.add(
        name,
        "pools_usd_per_1k_tokens",
        "cost of all tokens",
        pools.usd_per_1k,
        "$ per 1k tokens",
        "devices x price x (t_prefill + t_decode) / (prompt + output)",
    )
    sheet.add(
        name,
        "transfer_s",
        "moving the cache of one prompt",
        pools.transfer_s,
        "s",
        "cache of the prompt / (network x links that hold distinct parts)",
        prompt_tokens=q.work.prompt,
    )


def drafts(sheet: Sheet, q: Question, timer: ReplicaTimer, c: Curve) -> None:
    """Speculative decoding at each batch, by the textbook and with the experts that a check touches."""
    m, s = q.model, q.model.shape
    context = np.full_like(c.batch, q.work.context)
    real = speedup(timer, c.sequences, context, q.accept, q.drafts, q.draft_cost)
    book = textbook_speedup(q.accept, q.drafts, q.draft_cost)

    def experts(tokens: float) -> float:
        return s.n_experts * (1 - (1 - s.top_k / s.n_experts) ** tokens) if s.n_experts > 1 else 1.0

    rows = [
        {
            "micro_batch_sequences": int(b),
            "step_experts": experts(b * m.dp),
            "check_experts": experts(b * m.dp * (q.drafts + 1)),
            "textbook_speedup_ratio": book,
            "speedup_ratio": float(x),
        }
        for b, x in zip(c.batch, real, strict=True)
    ]
    sheet.table("speculation", f"{q.drafts} drafts, {q.accept:g} accepted, draft step {q.draft_cost:g} of a step", rows)


def comparison(sheet: Sheet, q: Question, constants: Profile) -> None:
    """A claimed cost ratio against another model, split into FLOPs and utilisation, beside the modelled one."""
    assert q.other is not None
    m, other = q.model, q.other
    claimed = versus.split(q.ratio, m.shape, other)
    name = f"against {other.name}"
    sheet.add(name, "claimed_cost_ratio", "claimed cost ratio", claimed.ratio, "x", "as asked")
    sheet.add(
        name,
        "flops_ratio",
        "of it by FLOPs per token",
        claimed.flops,
        "x",
        "active / active parameters",
        active=m.shape.active_parameters,
        other=other.active_parameters,
    )
    sheet.add(name, "utilisation_ratio", "left to lower utilisation", claimed.utilisation, "x", "ratio / FLOPs ratio")
    context = min(q.context, other.context)
    small = versus.smallest(other, m.device, m.weights, context)
    mine = versus.cheapest(m, constants, q.engine, q.context, q.work.context)
    theirs = versus.cheapest(small, constants, q.engine, context, context * q.work.context / q.context)
    model = versus.modelled(mine, theirs)
    sheet.add(
        name,
        "modelled_cost_ratio",
        "modelled, each at its largest batch",
        model.ratio,
        "x",
        "device-seconds per output token, decode alone",
        other_devices=small.devices,
        other_batch=theirs.sequences,
        other_context=context,
    )
    sheet.add(
        name,
        "modelled_utilisation_ratio",
        "modelled ratio left to utilisation",
        model.utilisation,
        "x",
        "utilisation of the other / of the model",
        mfu=mine.mfu,
        other_mfu=theirs.mfu,
    )
