"""The part of the sheet about memory: what a device holds, the stages, and whether a context fits."""

from dataclasses import replace

import numpy as np

from moesaic.plan.serving.batching import ReplicaTimer
from moesaic.plan.serving.memory import Room, average_room, tightest, weight_bytes
from moesaic.plan.serving.question import Question
from moesaic.plan.sheet import Sheet, Value


def memory(sheet: Sheet, q: Question, tight: Room) -> None:
    """What one device holds, and how many sequences fit at the whole context."""
    m, s = q.model, q.model.shape
    even = average_room(m, q.context, q.chunk)
    total = s.kv_bytes_per_token(m.kv_value_bytes)
    here = m.kv_bytes_per_token_layer * s.n_layers
    name = "memory of one device"
    sheet.add(
        name,
        "kv_bytes_per_token",
        "cache per token, whole model",
        total,
        "B",
        "2 x layers x kv heads x head width x bytes (MLA: latent + rotary key)",
        layers=s.n_layers,
        kv_heads=s.n_kv_heads,
        head_width=s.head_dim,
        bytes=m.kv_value_bytes,
    )
    sheet.add(
        name,
        "kv_copies",
        "copies of each cached value over the tp ranks",
        here * m.tp / total,
        "",
        "tp x ceil(kv heads / tp) / kv heads; a latent is replicated tp times",
        tp=m.tp,
        kv_heads=s.n_kv_heads,
    )
    sheet.add(
        name,
        "weights_average_gb",
        "weights, average over the stages",
        even.weight_bytes / 1e9,
        "GB",
        "parameters x bytes / devices",
        parameters=s.total_parameters,
        devices=m.devices,
    )
    sheet.add(
        name,
        "weights_heaviest_gb",
        "weights, tightest stage",
        tight.weight_bytes / 1e9,
        "GB",
        "layers of the stage x bytes of a layer / tp",
        tp=m.tp,
    )
    sheet.add(
        name,
        "reserve_gb",
        "reserve",
        tight.reserve_bytes / 1e9,
        "GB",
        "1.0 context + 0.4 collective buffers + activations of a prompt chunk",
        chunk_tokens=q.chunk,
    )
    sheet.add(
        name,
        "stage_kv_gb_per_sequence",
        "cache of one full sequence, tightest stage",
        tight.kv_bytes / 1e9,
        "GB",
        "layers of the stage x kv heads of the device x 2 x head width x bytes x context",
        context=q.context,
    )
    sheet.add(
        name,
        "capacity_sequences",
        "sequences that fit at the whole context, tightest stage",
        tight.sequences,
        "sequences",
        "(memory - weights - reserve) / cache of one sequence",
        memory_gb=m.device.memory_gb,
    )
    sheet.add(
        name,
        "even_capacity_sequences",
        "the same if stages were even",
        even.sequences,
        "sequences",
        "as above with averages over the stages",
    )
    sheet.add(
        name,
        "micro_batch_capacity_sequences",
        "sequences of a micro-batch, all grown to the whole context",
        tight.sequences // (m.pp * m.dp),
        "sequences",
        "capacity / (pp x dp), rounded down",
        pp=m.pp,
        dp=m.dp,
    )


def stage_table(sheet: Sheet, q: Question, timer: ReplicaTimer, batch: float) -> None:
    """Layers, weights and decode time of each stage, and how even they are."""
    m = q.model
    each, context, zero = np.array([batch]), np.array([q.work.context]), np.zeros(1)
    times = [float(t.run(each, context, zero, zero).seconds[0]) for t in timer.timers]
    rows: list[dict[str, Value]] = []
    for t, seconds in zip(timer.timers, times, strict=True):
        s = t.stage
        part = [n for n, on in (("embeddings", s.embeds), ("head", s.heads)) if on]
        rows.append(
            {
                "stage": s.index,
                "layers": s.layers,
                "also": ", ".join(part) or "-",
                "weights_gb": weight_bytes(m, s) / 1e9,
                "time_ms": seconds * 1e3,
                "of_slowest_share": seconds / max(times),
            }
        )
    sheet.table(
        "stages", f"Stages at {batch:g} sequences a micro-batch, grown to {q.work.context:,.0f} tokens on average", rows
    )
    slowest = int(np.argmax(times))
    sheet.add(
        "pipeline",
        "stage_balance_share",
        "mean stage time over the slowest",
        float(np.mean(times)) / max(times),
        "share",
        "mean(time) / max(time): what even stages could gain",
        slowest_stage=slowest,
    )
    layers = [t.stage.layers for t in timer.timers]
    if m.pp > 1 and layers[0] < max(layers):
        sheet.note(
            f"the first stage, which also embeds, holds {layers[0]} layers and the fullest {max(layers)}: "
            f"{m.shape.n_layers} layers over {m.pp} stages; the fullest stage sets pace and capacity"
        )


def head_table(sheet: Sheet, q: Question) -> None:
    """Would the context fit with other numbers of key/value heads? Weights are held at the model's."""
    m, s = q.model, q.model.shape
    if s.latent:
        return
    many = s.d_model // s.head_dim
    rows: list[dict[str, Value]] = []
    kinds = [("MQA", 1), ("GQA-8", 8), (f"MHA, d_model / head width = {many} heads", many)]
    if s.n_kv_heads not in (1, 8, many):
        kinds.append(("the model's own", s.n_kv_heads))
    for label, heads in kinds:
        other = replace(m, shape=replace(s, n_kv_heads=heads))
        each = tightest(other, q.context, q.first, q.chunk)[1].kv_bytes
        free = tightest(m, q.context, q.first, q.chunk)[1].free_bytes
        worst = max(int(free / each), 0) * m.dp
        even = average_room(m, q.context, q.chunk).free_bytes
        mean = average_room(other, q.context, q.chunk).kv_bytes
        average = max(int(even / mean), 0) * m.dp
        slots = m.pp * m.dp
        verdict = "yes" if worst >= slots else f"no: fewer than {slots} pipeline slots" if worst else "no"
        rows.append(
            {
                "heads": label,
                "kv_heads": heads,
                "stage_kv_gb_per_sequence": each / 1e9,
                "capacity_sequences": worst,
                "even_capacity_sequences": average,
                "fits": verdict,
            }
        )
    title = f"Does {q.context:,} fit on {m.device.label}? (weights held at the model's)"
    sheet.table("context_fits", title, rows)
