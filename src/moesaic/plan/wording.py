"""How values and keys of a sheet are written for people, on the terminal as on a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moesaic.plan.quantity import printable
from moesaic.plan.sheet import Figure, Interval

_SPELLED = {
    "b": "B", "bytes": "bytes", "kb": "kB", "mb": "MB", "gb": "GB", "tb": "TB", "gib": "GiB", "mib": "MiB",
    "kib": "KiB", "usd": "$", "mfu": "MFU", "hfu": "HFU", "mbu": "MBU", "mape": "MAPE", "gpu": "GPU", "gpus": "GPUs",
    "kv": "KV", "flop": "FLOP", "flops": "FLOPs", "gflop": "GFLOP", "tflop": "TFLOP", "tflops": "TFLOP/s",
    "tp": "TP", "pp": "PP", "ep": "EP", "etp": "ETP", "cp": "CP", "dp": "DP", "kw": "kW", "mw": "MW", "kwh": "kWh",
    "mwh": "MWh", "fp8": "FP8", "fp16": "FP16", "zero": "ZeRO", "p10": "p10", "nvlink": "NVLink", "hbm": "HBM",
    "ttft": "TTFT", "tpot": "TPOT", "mtti": "MTTI", "1m": "1M", "6n": "6 N", "gpt3": "GPT-3",
}  # fmt: skip
_MEASURED = frozenset({"days", "h", "s", "ms", "months", "tokens", "devices", "parameters"})
_DEGREES = ("tp", "pp", "cp", "dp", "ep", "etp", "micro_batch", "chunks", "zero", "recompute")
_SAID_ABOVE = frozenset({"devices_asked"})  # columns that the title says when they are the same in every row
_PARTS = frozenset({"GB", "s"})  # units of figures that are parts of a sum


@dataclass(frozen=True)
class Column:
    """A column as people read it."""

    key: str
    heading: str
    is_number: bool
    cells: Sequence[str]


def heading(key: str) -> str:
    """The words of a key, for the head of a column: `gpu_hours_usd` -> `GPU hours $`, `mfu_share` -> `MFU`.

    A share of something that has a unit says so, lest it read as the thing: `days_share` -> `share of days`.
    """
    stem = key.removesuffix("_share")
    words = stem.split("_")
    shared = stem != key and words[-1] in _MEASURED
    return printable("share of " * shared + " ".join(_SPELLED.get(word, word) for word in words))


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
        return f"{100 * value:.3g} %" if abs(value) < 9.995 else f"{100 * value:,.0f} %"
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


def is_nothing(figure: Figure) -> bool:
    """Whether a figure is a part of a sum that is 0: people are spared its line."""
    value = figure.value
    return figure.unit in _PARTS and is_number(value) and not isinstance(value, Interval) and value == 0


def misses(row: Mapping[str, Any]) -> bool:
    """Whether a row says of itself that it does not fit, and is shown dimmed."""
    return row.get("fits") is not None and not row["fits"]


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns of all rows in the order in which keys appear, without those that tell a reader nothing.

    Degrees of a layout become one column of words; dollars from 1e6 and tokens and parameters from 1e8 on are
    written in millions and billions; a column is left out that is empty, or that says of several rows that all fit.
    """
    folded = [_folded(row) for row in rows]
    keys = dict.fromkeys(key for row in folded for key in row)
    columns = []
    for key in keys:
        values = [row.get(key) for row in folded]
        if not _tells_nothing(key, values):
            head, factor = _scale(key, values)
            shown = [_scaled(value, factor) for value in values]
            cells = [text(value, is_share(key)) for value in shown]
            columns.append(Column(key, head, all(map(is_number, values)), cells))
    return columns


def _folded(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with its degrees of parallelism in one place, in words."""
    if not all(name in row for name in _DEGREES):
        return row
    out: dict[str, Any] = {}
    for key, value in row.items():
        if key not in _DEGREES:
            out[key] = value
        elif "layout" not in out:
            out["layout"] = _layout(row)
    return out


def _layout(row: Mapping[str, Any]) -> str:
    degrees = " ".join(f"{name}{row[name]}" for name in ("tp", "pp", "cp", "dp", "ep", "etp") if row[name] != 1)
    chunks = f" v{row['chunks']}" if row["chunks"] != 1 else ""
    return f"{degrees}{chunks} mb{row['micro_batch']} ZeRO-{row['zero']} {row['recompute']}".lstrip()


def _tells_nothing(key: str, values: Sequence[Any]) -> bool:
    """Whether a column may go: no value at all, or the same that its title or its presence says."""
    if all(value is None for value in values):
        return True
    several = len(values) > 1 and all(value == values[0] for value in values)
    return several and (key in _SAID_ABOVE or values[0] is True)


def _scale(key: str, values: Sequence[Any]) -> tuple[str, float]:
    """The head of a column and what its numbers are multiplied with."""
    middles = [value.p50 if isinstance(value, Interval) else value for value in values]
    if not all(map(is_number, middles)):
        return heading(key), 1.0
    sizes = [abs(value) for value in middles if value]
    words = key.split("_")
    if "usd" in words and sizes and max(sizes) >= 1e6:
        return heading(key).replace("$", "M$"), 1e-6
    if words[-1] in ("tokens", "parameters") and sizes and min(sizes) >= 1e8:
        return f"{heading(key)}, B", 1e-9
    return heading(key), 1.0


def _scaled(value: Any, factor: float) -> Any:
    if factor == 1 or value is None:
        return value
    return value.map(factor) if isinstance(value, Interval) else value * factor
