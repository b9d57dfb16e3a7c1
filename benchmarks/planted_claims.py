"""Random claims that are true, some of them with a slip planted: what the audit is measured on.

True values are computed here in plain floating point, apart from the audit's own evaluator and units.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

SCALES = (10, 100, 1000)


@dataclass(frozen=True)
class Planted:
    """A claim as a file would hold it, and the slip that was put into it ("" when it was left true)."""

    claim: dict[str, Any]
    slip: str  # "", x10, x100, x1000, cents/dollars, TFLOP/GFLOP, swapped terms
    factor: float | None


@dataclass(frozen=True)
class _True:
    text: str
    quantity: str
    expressions: Sequence[str]
    value: float  # in the base unit
    units: Sequence[tuple[str, float]]
    kind: str = "value"


def planted(seed: int, count: int, share: float = 0.5) -> list[Planted]:
    """`count` claims of which about `share` carry a slip. A function of the seed."""
    draw = random.Random(seed)
    return [_plant(draw, number, draw.random() < share) for number in range(count)]


def found(planted: Planted, verdict: str, slip: str, factor: float | None) -> bool:
    """Whether a verdict names the planted slip: its factor, or that terms are swapped."""
    if planted.factor is None:
        return verdict == "garbled" and slip == "swapped"
    return verdict == "garbled" and factor == planted.factor


def _plant(draw: random.Random, number: int, slipped: bool) -> Planted:
    while True:
        true = draw.choice(_TEMPLATES)(draw)
        unit, scale = draw.choice(true.units)
        value = true.value / scale
        if 1e-4 < value < 1e7 or unit == "FLOP":
            break
    slip, factor = "", None
    if slipped and true.kind != "divides":
        special = ["cents/dollars"] if "cent" in unit or "$" in unit else []
        special += ["TFLOP/GFLOP"] if "TFLOP" in unit or "GFLOP" in unit else []
        # where a is near 1, 1/a is as true
        special += ["swapped terms"] if true.kind == "ratio" and abs(math.log(true.value)) > 0.1 else []
        slip = draw.choice(special if special and draw.random() < 0.5 else [f"x{s}" for s in SCALES])
    if slip == "swapped terms":
        value = 1 / true.value / scale
    elif slip == "cents/dollars":
        unit, factor = (unit.replace("cents", "$") if "cents" in unit else unit.replace("$", "cents")), 100
    elif slip == "TFLOP/GFLOP":
        unit, factor = (unit.replace("T", "G") if "TFLOP" in unit else unit.replace("G", "T")), 1000
    elif slip:
        factor = int(slip[1:])
        # Ten times a true upper bound is still true: only a slip downwards shows.
        value *= factor if draw.random() < 0.5 and true.kind != "bound" else 1 / factor
    claimed = _rounded(value, draw.choice((2, 3)), up=true.kind == "bound") if true.kind != "divides" else value
    claim = {
        "id": number, "text": true.text, "quantity": true.quantity, "unit": unit, "claimed": claimed,
        "kind": true.kind,
        "readings": [{"name": f"reading {i}", "expression": e} for i, e in enumerate(true.expressions, 1)],
    }  # fmt: skip
    return Planted(claim, slip, factor)


def _rounded(value: float, digits: int, up: bool) -> float:
    step = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return float(f"{(math.ceil(value / step - 1e-9) if up else round(value / step)) * step:.12g}")


def _log(draw: random.Random, low: float, high: float, digits: int = 3) -> float:
    """Log-uniform, to some digits, as people write inputs."""
    return _rounded(math.exp(draw.uniform(math.log(low), math.log(high))), digits, False)


def _training(draw: random.Random) -> _True:
    n, d = _log(draw, 0.1, 3000), _log(draw, 0.02, 40)
    units = [("FLOP", 1.0), ("ZFLOP", 1e21), ("EFLOP", 1e18), ("petaflop/s-days", 8.64e19), ("TFLOP", 1e12)]
    text = f"trained with {n:g}B active parameters on {d:g}T tokens"
    expressions = [f"6 * {n!r}B parameters * {d!r}T tokens"]
    return _True(text, "training compute", expressions, 6 * n * 1e9 * d * 1e12, units)


def _forward(draw: random.Random) -> _True:
    n = _log(draw, 0.1, 3000)
    units = [("GFLOP/token", 1e9), ("TFLOPs per token", 1e12)]
    return _True("a forward pass", "FLOP per token", [f"2 * {n!r} billion parameters"], 2e9 * n, units)


def _cache(draw: random.Random) -> _True:
    layers, heads, context = draw.randint(8, 160), draw.choice((1, 2, 4, 8, 16, 64)), 2 ** draw.randint(11, 20)
    size = draw.choice((1, 2))
    expressions = [f"2 * {layers} * {heads} * 128 * {size} bytes/token * {context:,} tokens"]
    units = [("MB", 1e6), ("MiB", 2.0**20), ("GB", 1e9), ("GiB", 2.0**30)]
    return _True("KV cache of a context", "KV cache", expressions, 256.0 * layers * heads * size * context, units)


def _weights(draw: random.Random) -> _True:
    n, size, gpus = _log(draw, 1, 2000), draw.choice((0.5, 1, 2, 4)), 2 ** draw.randint(0, 8)
    expressions = [f"{n!r}e9 parameters * {size} byte/parameter / ({gpus} GPUs)"]
    return _True("weights of a GPU", "memory", expressions, n * 1e9 * size / gpus, [("GB/GPU", 1e9), ("GiB", 2.0**30)])


def _duration(draw: random.Random) -> _True:
    work, gpus, peak, mfu = (
        _log(draw, 1e21, 1e26),
        draw.randint(8, 30000),
        draw.choice((312, 989, 2250)),
        _log(draw, 10, 60),
    )
    expressions = [f"{work!r} FLOP / ({gpus} GPUs * {peak} TFLOP/s/GPU * {mfu!r}%)"]
    seconds = work / (gpus * peak * 1e12 * mfu / 100)
    return _True(
        "the run takes", "duration", expressions, seconds, [("days", 86400.0), ("hours", 3600.0), ("weeks", 604800.0)]
    )


def _bill(draw: random.Random) -> _True:
    price, gpus, days = _log(draw, 0.5, 8, 2), draw.randint(8, 30000), draw.randint(1, 200)
    units = [("$", 1.0), ("k$", 1e3), ("million dollars", 1e6), ("M$", 1e6)]
    expressions = [f"${price!r}/GPU-hour * {gpus:,} GPUs * {days} days"]
    units = units if draw.random() < 0.7 else [("$", 1.0), ("cents", 0.01)]
    return _True("the run costs", "cost", expressions, price * gpus * days * 24, units)


def _price(draw: random.Random) -> _True:
    price, rate = _log(draw, 0.5, 8, 2), _log(draw, 5, 20000)
    units = [("$/1M tokens", 1e-6), ("$ per 1k tokens", 1e-3), ("cents/1k tokens", 1e-5), ("cents/Mtok", 1e-8)]
    expressions = [f"${price!r}/GPU-hour / ({rate!r} tokens/s/GPU)"]
    return _True("serving costs", "price", expressions, price / 3600 / rate, units)


def _throughput(draw: random.Random) -> _True:
    rate, gpus = _log(draw, 100, 1e7), draw.randint(2, 4096)
    units = [("tokens/s/GPU", 1.0), ("tok/s per GPU", 1.0), ("ktok/s/GPU", 1e3)]
    return _True("throughput", "throughput", [f"{rate!r} tokens/s / {gpus} GPUs"], rate / gpus, units)


def _utilisation(draw: random.Random) -> _True:
    n, rate, peak, mfu = _log(draw, 1, 500), 0.0, draw.choice((312, 989)), draw.uniform(0.05, 0.65)
    rate = _rounded(mfu * peak * 1e12 / (6e9 * n), 4, False)
    expressions = [f"6 * {n!r}B parameters * {rate!r} tokens/s/GPU / ({peak} TFLOP/s/GPU)"]
    return _True("the run reaches", "MFU", expressions, 6e9 * n * rate / (peak * 1e12), [("%", 0.01)])


def _energy(draw: random.Random) -> _True:
    gpus, watts, hours, pue = (
        draw.randint(8, 30000),
        draw.choice((400, 700, 1200)),
        draw.randint(10, 4000),
        draw.choice((1.1, 1.3)),
    )
    expressions = [f"{gpus} * {watts} W * {hours} h * {pue}"]
    joules = gpus * watts * 3600.0 * hours * pue
    return _True(
        "energy of the run",
        "energy",
        expressions,
        joules,
        [("MWh", 3.6e9), ("kWh", 3.6e6), ("GWh", 3.6e12), ("GJ", 1e9)],
    )


def _reading_time(draw: random.Random) -> _True:
    size, speed = _log(draw, 1, 4000), _log(draw, 0.1, 8)
    units = [("ms", 1e-3), ("s", 1.0)]
    return _True("reading the weights takes", "time", [f"{size!r} GB / ({speed!r} TB/s)"], size / speed / 1e3, units)


def _against(draw: random.Random) -> _True:
    a, b = _log(draw, 0.1, 3000), _log(draw, 0.1, 3000)
    units = [("x", 1.0)] if a > b else [("x", 1.0), ("%", 0.01)]
    return _True("size against another", "size", [f"{a!r}B parameters / {b!r}B parameters"], a / b, units, "ratio")


def _limit(draw: random.Random) -> _True:
    n, gpus, room = _log(draw, 1, 2000), 2 ** draw.randint(0, 8), draw.uniform(1.0, 1.4)
    expressions = [f"{n!r}e9 parameters * 2 byte/parameter / ({gpus} GPUs)"]
    return _True("under this per GPU", "memory", expressions, room * n * 2e9 / gpus, [("GB/GPU", 1e9)], "bound")


def _layout(draw: random.Random) -> _True:
    tp, pp, dp = 2 ** draw.randint(0, 4), draw.randint(1, 20), draw.randint(1, 300)
    return _True("the cluster", "GPUs", [f"{tp} * {pp}"], float(tp * pp * dp), [("GPUs", 1.0)], "divides")


def _routed(draw: random.Random) -> _True:
    batch, k, experts = _log(draw, 0.1, 100), draw.randint(1, 8), 2 ** draw.randint(3, 8)
    value = batch * 1e6 * k / experts
    expressions = [f"{batch!r}M tokens * {k} / {experts}", f"{k}/{experts} * {batch!r}e6 tokens"]
    return _True(
        "tokens per expert",
        "tokens per expert",
        expressions,
        value,
        [("M tokens", 1e6), ("thousand tokens", 1e3), ("tokens", 1.0)],
    )


def _hours(draw: random.Random) -> _True:
    gpus, days = draw.randint(8, 30000), draw.randint(1, 200)
    return _True(
        "the run takes",
        "GPU-hours",
        [f"{gpus} GPUs * {days} days"],
        gpus * days * 86400.0,
        [("GPU-hours", 3600.0), ("M GPU-hours", 3.6e9)],
    )


_TEMPLATES: Sequence[Callable[[random.Random], _True]] = (
    _training, _forward, _cache, _weights, _duration, _bill, _price, _throughput, _utilisation, _energy, _reading_time,
    _against, _against, _limit, _layout, _routed, _hours,
)  # fmt: skip
