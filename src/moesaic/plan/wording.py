"""How values and keys of a sheet are written for people, on the terminal as on a page."""

from collections.abc import Mapping, Sequence
from typing import Any

from moesaic.plan.quantity import printable
from moesaic.plan.sheet import Interval

_SPELLED = {
    "bytes": "bytes", "kb": "kB", "mb": "MB", "gb": "GB", "tb": "TB", "gib": "GiB", "mib": "MiB", "kib": "KiB",
    "usd": "$", "pct": "%", "mfu": "MFU", "hfu": "HFU", "gpu": "GPU", "gpus": "GPUs", "kv": "KV", "flop": "FLOP",
    "flops": "FLOPs", "gflop": "GFLOP", "tflop": "TFLOP", "tflops": "TFLOP/s", "tp": "TP", "pp": "PP", "ep": "EP",
    "cp": "CP", "dp": "DP", "kw": "kW", "mw": "MW", "kwh": "kWh", "mwh": "MWh", "fp8": "FP8", "fp16": "FP16",
    "zero": "ZeRO", "p10": "p10", "nvlink": "NVLink", "hbm": "HBM", "ttft": "TTFT", "tpot": "TPOT", "mtti": "MTTI",
}  # fmt: skip


def heading(key: str) -> str:
    """The words of a key, for the head of a column: `gpu_hours_usd` -> `GPU hours $`."""
    words = key.removesuffix("_share").split("_")
    return printable(" ".join(_SPELLED.get(word, word) for word in words))


def is_share(key_or_unit: str) -> bool:
    """Whether a key of a table or a unit of a figure says that its numbers are fractions, read as percentages."""
    return key_or_unit == "share" or key_or_unit.endswith("_share")


def text(value: Any, share: bool = False) -> str:
    """A value as people read it: thousands in groups, four significant digits, p50 with its interval.

    A `share` is written in per cent.
    """
    if isinstance(value, Interval):
        return f"{text(value.p50, share)} ({text(value.p10, share)} to {text(value.p90, share)})"
    value = value.item() if hasattr(value, "item") else value  # a scalar of NumPy
    if share and isinstance(value, (int, float)) and not isinstance(value, bool) and value == value:
        return f"{100 * value:.3g} %"
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return printable(value)
    if value != value:
        return "-"
    if isinstance(value, int) or abs(value) >= 999.95:
        return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.4g}"
    return f"{value:.4g}"


def is_number(value: Any) -> bool:
    """Whether a value belongs into a right-aligned column. None does, wherever it stands."""
    value = value.item() if hasattr(value, "item") else value
    return not isinstance(value, (str, bool))


def misses(row: Mapping[str, Any]) -> bool:
    """Whether a row says of itself that it does not fit, and is shown dimmed."""
    return row.get("fits") is not None and not row["fits"]


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, bool]]:
    """Keys of all rows in the order they appear, and whether they hold numbers only."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [(key, all(is_number(row.get(key)) for row in rows)) for key in keys]
