"""The pictures of a search: MFU against memory, and where memory and time of the best layouts go."""

from collections.abc import Sequence

from moesaic.plan.choice import Choice
from moesaic.plan.device import Device
from moesaic.plan.sheet import Chart, Sheet


def draw(
    sheet: Sheet, fronts: Sequence[Choice], cloud: Sequence[tuple[float, float]], best: Sequence[Choice], device: Device
) -> None:
    """Append the pictures: the front of MFU and memory before a `cloud` of (GB, MFU), and the best layouts' parts."""
    front = [(c.estimate.bytes_needed / 1e9, c.estimate.mfu.p50) for c in fronts]
    sheet.chart(
        Chart(
            "mfu_by_memory",
            "MFU against memory of the fullest device",
            "points",
            "GB",
            "MFU",
            {"some that fit": cloud, "front": front},
            marks=[(device.memory_gb, "device")],
            told={"some that fit": [""] * len(cloud), "front": [_short(c) for c in fronts]},
        )
    )
    top = best[:8]
    parts = [n for n in vars(top[0].estimate.memory) if any(float(getattr(c.estimate.memory, n)[0]) for c in top)]
    bars = {n: [(float(i), float(getattr(c.estimate.memory, n)[0]) / 1e9) for i, c in enumerate(top)] for n in parts}
    names = [f"{i + 1}" for i in range(len(top))]
    mark = [(device.memory_gb, "device")]
    title = "Memory of the best layouts"
    sheet.chart(Chart("memory_of_top", title, "bars", "rank", "GB", bars, categories=names, marks=mark))
    spent = [n for n in top[0].seconds() if any(c.seconds()[n] for c in top)]
    steps = {n.replace("_", " "): [(float(i), c.seconds()[n]) for i, c in enumerate(top)] for n in spent}
    sheet.chart(Chart("step_of_top", "Step of the best layouts", "bars", "rank", "seconds", steps, categories=names))


def _short(c: Choice) -> str:
    return ", ".join(f"{name} {value}" for name, value in c.layout.items())
