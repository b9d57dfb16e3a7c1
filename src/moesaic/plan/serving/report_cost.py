"""The part of the sheet about cost: the curve over the batch, and the figures at the largest batch that fits."""

import numpy as np

from moesaic.plan.serving.batching import ReplicaTimer
from moesaic.plan.serving.cost import Curve, prompt_usd_per_1k
from moesaic.plan.serving.question import Question
from moesaic.plan.sheet import Z90, Chart, Interval, Sheet, Value


def costs(sheet: Sheet, q: Question, timer: ReplicaTimer, c: Curve, most: int, sigma: tuple[float, float]) -> None:
    """The curve as a table and a picture, and every figure at the largest batch in it that fits."""
    m = q.model
    rows: list[dict[str, Value]] = []
    for i, batch in enumerate(c.batch):
        rows.append(
            {
                "micro_batch_sequences": int(batch),
                "sequences": int(c.sequences[i]),
                "fits": bool(batch <= most),
                "step_ms": float(c.step_s[i]) * 1e3,
                "tpot_ms": float(c.load.token_s[i]) * 1e3,
                "ttft_s": float(c.load.first_s[i]),
                "output_tokens_per_s": float(c.load.output_tokens_per_s(q.work.output)[i]),
                "output_usd_per_1k_tokens": float(c.output_usd_per_1k[i]),
                "mixed_usd_per_1k_tokens": float(c.mixed_usd_per_1k[i]),
                "mfu_share": float(c.mfu[i]),
                "mbu_share": float(c.mbu[i]),
            }
        )
    sheet.table(
        "cost_against_batch",
        f"Cost against sequences of one micro-batch, each grown to {q.work.context:,.0f} tokens on average",
        rows,
    )
    x = c.batch.tolist()
    band = np.exp(Z90 * sigma[0])
    lines = {
        "decode alone": c.output_usd_per_1k,
        "decode alone, p10": c.output_usd_per_1k / band,
        "decode alone, p90": c.output_usd_per_1k * band,
        "all tokens, prompts included": c.mixed_usd_per_1k,
    }
    series = {name: list(zip(x, y.tolist(), strict=True)) for name, y in lines.items()}
    sheet.chart(
        Chart(
            "cost_against_batch_chart",
            "Cost per 1k tokens against batch",
            "lines",
            "sequences of one micro-batch",
            "$ per 1k tokens",
            series,
        )
    )
    fitting = np.flatnonzero(c.batch <= most)
    if not len(fitting):
        sheet.note(
            f"fewer sequences fit than the {m.pp * m.dp} pipeline slots: stages stand idle; costs assume full slots"
        )
        return
    i = int(fitting[-1])
    name = (
        f"at {int(c.batch[i])} sequences a micro-batch, {int(c.sequences[i])} in flight, "
        f"grown to {q.work.context:,.0f} tokens on average"
    )
    hourly = q.usd_per_gpu_hour * m.devices
    sheet.add(
        name,
        "step_ms",
        "decode step, all stages",
        Interval.around(float(c.step_s[i]) * 1e3, sigma[0]),
        "ms",
        "pp x time of the slowest stage: weights and experts touched, cache, collectives, fixed times",
        pp=m.pp,
    )
    sheet.add(
        name,
        "output_usd_per_1k_tokens",
        "cost of output, decode alone",
        Interval.around(float(c.output_usd_per_1k[i]), sigma[0]),
        "$ per 1k tokens",
        "devices x price x step / sequences",
        devices=m.devices,
        usd_per_gpu_hour=q.usd_per_gpu_hour,
    )
    sheet.add(
        name,
        "prompt_usd_per_1k_tokens",
        "cost of prompt, prefill alone",
        Interval.around(prompt_usd_per_1k(timer, q.work, q.usd_per_gpu_hour, q.chunk), sigma[1]),
        "$ per 1k tokens",
        "devices x price x pass over a chunk / its tokens",
        chunk_tokens=q.chunk,
    )
    sheet.add(
        name,
        "mixed_usd_per_1k_tokens",
        "cost of all tokens, one machine doing both",
        Interval.around(float(c.mixed_usd_per_1k[i]), sigma[0]),
        "$ per 1k tokens",
        "price / (requests per second x (prompt + output)); requests by the fixed point of docs/plan-serve.md",
        prompt_tokens=q.work.prompt,
        output_tokens=q.work.output,
        usd_per_hour=hourly,
    )
    sheet.add(
        name,
        "tpot_ms",
        "between tokens, prompts of others included",
        Interval.around(float(c.load.token_s[i]) * 1e3, sigma[0]),
        "ms",
        "step + decoding / output x time of a prompt",
    )
    sheet.add(
        name,
        "ttft_s",
        "time to first token",
        Interval.around(float(c.load.first_s[i]), sigma[1]),
        "s",
        "request overhead + chunks through the pipeline + queue",
        prompt_tokens=q.work.prompt,
    )
    sheet.add(
        name,
        "output_tokens_per_s",
        "output of the replica",
        Interval.around(float(c.load.output_tokens_per_s(q.work.output)[i]), sigma[0]),
        "tokens/s",
        "concurrency x output / (first token + output x time between tokens)",
    )
    sheet.add(
        name,
        "mfu_share",
        "utilisation of arithmetic, decode alone",
        float(c.mfu[i]),
        "share",
        "tokens/s x 2 x active parameters / (devices x peak)",
        active_parameters=m.shape.active_parameters,
    )
    sheet.add(
        name,
        "mbu_share",
        "utilisation of memory bandwidth, decode alone",
        float(c.mbu[i]),
        "share",
        "bytes read by the slowest stage / (stage time x nominal bandwidth)",
    )
