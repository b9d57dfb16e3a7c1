"""A sheet with everything a sheet can hold, of numbers that only have to look like a plan's."""

from moesaic.plan.sheet import Chart, Interval, Sheet

EVIL = "<script>alert('x')</script> & \"co\""
STAGES, MICRO_BATCHES = 15, 300


def sheet() -> Sheet:
    """Figures of each kind of value, a wide and a long table, all five pictures, remarks, and a hostile name."""
    out = Sheet(f"gpt4 on 24,960 x a100-80 {EVIL}")
    size = "layers * (attention + experts * ffn + router) + embedding"
    out.add("Parameters", "params_total", "total", 1_832_612_345_856, "parameters", size, layers=120, experts=16)
    out.add("Parameters", "params_active", "active per token", 278.9e9, "parameters", "", d_model=10752)
    out.add("Parameters", "model_name", f"name {EVIL}", EVIL, "", f"as given {EVIL}", name=EVIL)
    out.add(
        "Step", "step_time_s", "time of a step", Interval(26.83, 29.41, 33.02), "s", "m * t + (p - 1) * t / v", m=35
    )
    out.add("Step", "mfu_pct", "MFU", Interval(31.2, 34.8, 37.9), "%", "model FLOPs / (time * peak)", peak_tflops=312)
    out.add("Step", "bubble_pct", "bubble", 28.5714, "%", "(p - 1) / (m + p - 1)", p=15, m=35)
    out.add("Step", "fits", "fits into memory", True, "", "", reserve_gb=3.5)
    out.add("Step", "slope", "unbounded", float("inf"), "s", "1 / 0")
    out.add("Step", "nothing", "not known", float("nan"), "s", "")
    out.add("Step", "missing", "not asked", None, "", "")
    out.table("stages", "Memory by stage", [_stage(i) for i in range(STAGES)])
    out.table("layouts", "Layouts", [_layout(i) for i in range(160)])
    out.table("empty", "Nothing found", [])
    for chart in charts():
        out.chart(chart)
    out.note("35 micro-batches cannot be scheduled interleaved: 35 is not a multiple of 15. Take 30 or 36. " * 2)
    out.note(f"The name {EVIL} is only text.")
    return out


def charts() -> list[Chart]:
    """One of each kind."""
    wide = {name: [(10.0**e, k * 10.0 ** (e / 2)) for e in range(6)] for k, name in ((1, "A100"), (2, EVIL))}
    cloud = {"fits": [(20.0 + i, 31 + (i * 7) % 13) for i in range(60)], "front": [(30.0, 45.0), (60.0, 46.0)]}
    memory = {
        "weights": [(float(i), 28.6) for i in range(STAGES)],
        "gradients": [(float(i), 14.3) for i in range(STAGES)],
        "optimizer": [(float(i), 3.1) for i in range(STAGES)],
        "activations": [(float(i), 20.0 - i) for i in range(STAGES)],
    }
    return [
        Chart("cost", "Cost against days", "lines", "days", "cost, $", wide, marks=[(300.0, "as described")]),
        Chart("pareto", "Layouts", "points", "memory, GB", "MFU, %", cloud, told={"front": [EVIL, "tp8 pp15"]}),
        Chart(
            "memory", "Memory", "bars", "stage", "memory, GB", memory,
            categories=[f"stage {i}" for i in range(STAGES)], marks=[(80.0, "capacity")],
        ),
        Chart(
            "hangs_on", "What the cost hangs on", "tornado", "input", "cost, M$",
            {"low": [(0.0, 50.0), (1.0, 70.0), (2.0, 58.0)], "high": [(0.0, 66.0), (1.0, 49.0), (2.0, 60.0)]},
            categories=["price of a GPU-hour", "MFU", EVIL], marks=[(59.0, "as planned")],
        ),
        Chart("step", "A step", "timeline", "time, s", "stage", spans=spans()),
    ]  # fmt: skip


def spans() -> list[tuple[int, float, float, str]]:
    """1F1B of STAGES stages and MICRO_BATCHES micro-batches: 9,000 spans."""
    out = []
    for stage in range(STAGES):
        ahead = min(STAGES - stage, MICRO_BATCHES)
        order = ["forward"] * ahead + ["backward", "forward"] * (MICRO_BATCHES - ahead) + ["backward"] * ahead
        clock = float(stage)
        for i, kind in enumerate(order):
            if i == ahead:
                clock += 3.0 * (STAGES - 1 - stage) - (ahead - 1)
            length = 1.0 if kind == "forward" else 2.0
            out.append((stage, clock, clock + length, kind))
            clock += length
    return out


def _stage(i: int) -> dict[str, object]:
    parts = {"weights_gb": 28.6, "gradients_gb": 14.3, "optimizer_gb": 3.1, "activations_gb": 20.0 - i}
    return {"stage": i, "layers": 8, **parts, "total_gb": sum(parts.values()), "fits": i > 2}


def _layout(i: int) -> dict[str, object]:
    return {
        "layout": f"tp8 pp15 ep{2 ** (i % 5)} dp{208 - i}",
        "micro_batch_sequences": 1 + i % 4,
        "interleave": 1 + i % 8,
        "zero_stage": 1,
        "recompute": "selective" if i % 2 else None,
        "step_time_s": Interval(26.0 + i, 29.0 + i, 33.0 + i),
        "mfu_pct": 36.0 - i / 10,
        "memory_heaviest_stage_bytes": 66_012_345_678 + i,
        "days": 94.2 + i,
        "cost_usd": 5.41e7 + i * 1e5,
        "why": EVIL if i == 0 else "the fastest of those that fit the memory of the heaviest stage",
    }
