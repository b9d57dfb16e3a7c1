"""Published measurements of training, as questions to the planner: which model, layout and stack gave which time.

`published.csv` ships with the package: 595 rows with their sources. What a row leaves open (micro-batch, interleave,
recomputation) is chosen as a practitioner would: the fastest that fits.
"""

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np

from moesaic.errors import PlanError
from moesaic.plan.device import Device, device
from moesaic.plan.flops import Recompute, training_flops
from moesaic.plan.job import OPTIMIZER_BYTES, Job
from moesaic.plan.layouts import FULL, NONE, SELECTIVE, Array, Layouts, valid
from moesaic.plan.memory import Memory, memory
from moesaic.plan.shape import Shape
from moesaic.plan.shapes import NOT_PLAIN, shape_for_row
from moesaic.plan.stack import Stack
from moesaic.plan.step import step_time

Row = Mapping[str, str]
HALF = ("bf16", "fp16")
# Which stack a source ran, by what its citation contains; the first that fits counts.
STACKS = (
    ("2104.04473", "megatron-2021"),
    ("2205.05198", "megatron-2021"),
    ("2201.11990", "research"),
    ("2211.05100", "research"),
    ("BigScience", "research"),
    ("nanotron", "research"),
    ("2402.15627", "megascale"),
    ("torchtitan", "fsdp"),
    ("2205.01068", "fsdp"),
    ("Megatron-Bridge", "megatron-bridge"),
    ("MoE-ModelZoo", "megatron-bridge"),
    ("AI-Hypercomputer", "xla"),
    ("2204.02311", "xla"),
)
# Sources whose FLOP counts half of the scores. Megatron-Bridge prints both rates, from which it follows
# (`test_both_rates_of_a_row_agree`); the two papers do not say, but only then does their MFU move smoothly with the
# context. Earlier sources count all scores (Narayanan et al. 2021, eq. 3).
CAUSAL = ("Megatron-Bridge", "MoE-ModelZoo", "2603.07685", "2504.14960", "2407.21783")
MEMORY_SIGMA = 0.05  # of log(published / predicted) memory: an assumption, no row of split `fit` in 16 bit measures it
MICRO_BATCHES = (1, 2, 4, 8)
MOST_LAYERS = 2000
RATES = ("iter_time", "tokens_per_s", "tokens_per_s_per_gpu", "mfu", "model_tflops_per_gpu", "hw_tflops_per_gpu")
COUNTS = (
    *("n_layers", "d_model", "n_heads", "d_ff", "vocab", "n_experts", "top_k", "n_devices", "tp", "pp", "cp", "dp"),
    *("ep", "vpp", "zero", "seq_len", "global_batch_seqs", "micro_batch"),
)
COLUMNS = (
    *("id", "category", "split", "model", "params_b", "active_params_b", "n_kv_heads", "ffn", "device", "recompute"),
    *("precision", "input_len", "output_len", "metric", "unit", "value", "source", "notes", "peak_tflops", *COUNTS),
    *("value_includes_recompute", "how_read"),
)
CODES = ("category", "split", "recompute", "precision", "metric")
# Values that a row has in its notes only. OPT's "2M-token batch" is 992 sequences of 2,048: the nearest that its 124
# replicas divide.
AMENDED: Mapping[str, Mapping[str, str]] = {"opt-175b": {"global_batch_seqs": "992"}}


@dataclass(frozen=True)
class Trial:
    """A row as the planner sees it. `open` layouts differ only in what the row leaves open."""

    row: Row
    shape: Shape
    device: Device
    stack: str
    job: Job
    open: Layouts

    @property
    def devices(self) -> int:
        """Devices of the run."""
        return int(self.row["n_devices"])

    def best(self, using: Stack) -> tuple[Layouts, float, Memory]:
        """The layout that was probably run (fastest that fits), its seconds a step and its memory."""
        space = memory(self.shape, self.job, self.open, using)
        seconds = step_time(self.shape, self.job, self.open, self.device, using).total
        # High-bandwidth memory is sold in GiB called GB. A plan keeps to 1e9; a run that happened had all of it, and
        # our count of its bytes may be too high.
        room = self.device.memory_gb * (1e9 if self.device.generation == "tpu" else 2**30) * (1 + MEMORY_SIGMA)
        more = _recomputed(self.open, seconds, space.total, room)
        if not np.isfinite(more).any():  # the smallest of those that should not fit
            more = np.where(space.total <= space.total.min() * 1.001, 0.0, np.inf)
        seconds = seconds + more
        index = int(np.argmin(seconds))
        picked = np.array([index])
        kept = Memory(*(np.broadcast_to(v, len(self.open))[picked] for v in vars(space).values()))
        return self.open[picked], float(seconds[index]), kept

    def published_seconds(self) -> float:
        """Seconds a step that the published value means."""
        row, value, tokens = self.row, number(self.row, "value"), self.job.batch_tokens
        metric, unit = row["metric"], row["unit"]
        if metric == "iter_time":
            return value * (1e-3 if unit == "ms" else 1.0)
        if metric == "tokens_per_s_per_gpu":
            return tokens / (value * self.devices)
        if metric == "tokens_per_s":
            return tokens / value
        if metric == "mfu":
            rate = value * self.device.peak("bf16") * (0.01 if "%" in unit else 1.0)
        else:
            rate = value * 1e12
        causal = any(word in row["source"] for word in CAUSAL)
        again: Recompute = "full" if metric == "hw_tflops_per_gpu" else "none"  # what a hardware rate counts too
        flop = training_flops(self.shape, self.job.seq_len, causal, again)
        return tokens * flop / (rate * self.devices)


def _recomputed(layouts: Layouts, seconds: Array, bytes_: Array, room: float) -> Array:
    """What fitting costs: a layout too large for the device recomputes as many layers in full as it must.

    `layouts` lists the modes of each micro-batch and interleave one after another; infinite where nothing fits.
    """
    out = np.where(bytes_ <= room, 0.0, np.inf)
    same = {n: getattr(layouts, n) for n in ("micro_batch", "chunks")}
    for i in np.flatnonzero(bytes_ > room):
        full = [
            j
            for j in np.flatnonzero(layouts.recompute == FULL)
            if all(v[i] == v[j] for v in same.values()) and bytes_[j] <= room
        ]
        if full and layouts.recompute[i] != FULL:
            share = (bytes_[i] - room) / (bytes_[i] - bytes_[full[0]])
            out[i] = max(seconds[full[0]] - seconds[i], 0.0) * share
    return out


def rows(path: Path | None = None) -> list[Row]:
    """Rows of a CSV file in the layout of the shipped one, every column of `COLUMNS` present. Raises PlanError."""
    try:
        file = files("moesaic.plan").joinpath("published.csv") if path is None else path
        text = file.read_text(encoding="utf-8-sig")
        found = [_whole(row) for row in csv.DictReader(io.StringIO(text, newline=""))]
    except OSError as error:
        raise PlanError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise PlanError(f"{path} is no CSV file in UTF-8: {error}") from error
    if not found or not {"model", "metric", "value"} <= found[0].keys():
        raise PlanError(f"{path}: needs rows, and columns model, metric, value; docs/plan-validate.md has the rest")
    complete = [{**dict.fromkeys(COLUMNS, ""), **row} for row in found]
    for number, row in enumerate(complete, 2):
        row["id"] = row["id"] or f"line {number}"
        row.update(AMENDED.get(row["id"], {}) if path is None else {})
        if not row["category"] and row["metric"] in RATES:  # logs of one's own, as `plan fit` takes them
            row["category"] = "train"
            row["precision"] = row["precision"] or "bf16"
    return [row for row in complete if any(row[c] for c in ("model", "metric", "value"))]


def _whole(row: Mapping[str | None, str | list[str] | None]) -> dict[str, str]:
    """A row without what is missing or too much; counts that a spreadsheet wrote as 8.0 are 8."""
    out = {k.strip(): (v or "").strip() for k, v in row.items() if k is not None and not isinstance(v, list)}
    out |= {c: out[c].removesuffix(".0") for c in COUNTS if c in out}
    return out | {c: out[c].lower() for c in CODES if c in out}


def number(row: Row, column: str) -> float:
    """A positive number of a row. Raises PlanError that names row and column."""
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise PlanError(f"row {row['id']}: {column} = '{row[column]}' is no positive number")
    return value


def check_counts(row: Row) -> None:
    """Raises PlanError that names row and column where a count is no whole number above 0."""
    for column in COUNTS:
        value = row[column]
        if value and not (value.isdecimal() and len(value) < 16 and (int(value) > 0 or column == "zero")):
            raise PlanError(f"row {row['id']}: {column} = '{value}' is no whole number above 0")
    if row["n_layers"] and int(row["n_layers"]) > MOST_LAYERS:
        raise PlanError(f"row {row['id']}: n_layers = {row['n_layers']} exceeds {MOST_LAYERS}")
    for small, large in (("n_heads", "d_model"), ("top_k", "n_experts")):
        if row[small] and row[large] and int(row[small]) > int(row[large]):
            raise PlanError(f"row {row['id']}: {small} = {row[small]} exceeds {large} = {row[large]}")
    if row["params_b"]:
        number(row, "params_b")


def question(row: Row, shape: Shape | None = None, name: str = "") -> Trial | str:
    """What a row asks the planner, or in a few words why it cannot be compared.

    `shape` and `name` (of a stack) stand for those that follow from the row. Raises PlanError that names row and
    column where a cell is no number.
    """
    check_counts(row)
    if row["metric"].startswith("gpu_hours"):
        return "a whole run, with its failures"
    if row["category"] == "train" and row["metric"] not in RATES:
        return f"metric '{row['metric']}' is none of a step"
    shape = shape or shape_for_row(row)
    if any(row[c] == "" for c in ("tp", "pp", "dp", "seq_len", "global_batch_seqs", "n_devices")):
        return "no published layout"
    if shape is None:
        return "not a plain transformer" if row["model"].startswith(NOT_PLAIN) else "unknown model"
    try:
        kind = device(row["device"])
        kind.peak(row["precision"])
        if not name:
            name = next((s for word, s in STACKS if word in row["source"]), _by_layout(row))
            if name == "megascale" and row["notes"].startswith("Megatron-LM"):
                name = "megatron-2021"
        job = _job(row, name)
        layouts = _open(row, shape, job)
    except PlanError as error:
        return str(error)
    if int(layouts.world[0]) != int(row["n_devices"]):
        return f"TP x PP x CP x DP = {layouts.world[0]} and not the {row['n_devices']} devices"
    return Trial(row, shape, kind, name, job, layouts)


def _by_layout(row: Row) -> str:
    if row["device"].startswith("TPU"):
        return "xla"
    return "fsdp" if row["zero"] == "3" and row["pp"] == "1" else "megatron-core"


def _job(row: Row, name: str) -> Job:
    """The step of a row, with the bytes of its stack.

    Megatron-Bridge's recipes reduce gradients in bf16 (`grad_reduce_in_fp32 = False`), and those of the DeepSeek-V3
    family keep both moments of Adam in bf16 (`exp_avg_dtype`, `exp_avg_sq_dtype`: recipes/deepseek, recipes/moonlight).
    """
    gradient, optimizer = 4, OPTIMIZER_BYTES
    if name == "megatron-bridge":
        gradient = 2
        optimizer = 8 if row["model"].startswith(("DeepSeek-V3", "Moonlight")) else optimizer
    return Job(int(row["seq_len"]), int(row["global_batch_seqs"]), row["precision"], gradient, optimizer)


def _open(row: Row, shape: Shape, job: Job) -> Layouts:
    """Every layout that agrees with the row. Raises PlanError when none can run."""
    degree = {name: int(row[name] or 1) for name in ("tp", "pp", "cp", "dp", "ep")}
    per_stage = -(-shape.n_layers // degree["pp"])
    chunks = [int(row["vpp"])] if row["vpp"] else list(range(1, per_stage + 1))
    micro = [int(row["micro_batch"])] if row["micro_batch"] else list(MICRO_BATCHES)
    recompute = row["recompute"] or ("full" if row["metric"].startswith("hw_") else "")  # such rates count it
    modes = {"": (NONE, SELECTIVE, FULL), "none": (NONE,), "full": (FULL,)}.get(recompute, (SELECTIVE,))
    split = "folding" not in row["id"] and "2504.14960" in row["source"]
    grid = np.array([(b, v, r) for b in micro for v in chunks for r in modes])
    made = Layouts.of(
        **degree,
        etp=degree["tp"] if split or degree["ep"] == 1 else 1,
        micro_batch=grid[:, 0],
        chunks=grid[:, 1],
        zero=int(row["zero"] or 1),
        recompute=grid[:, 2],
    )
    whole = (made.micro_batches(job.batch) * made.dp * made.micro_batch == job.batch) & (made.dp <= job.batch)
    if not whole.any():
        raise PlanError(f"{job.batch} sequences do not divide over {degree['dp']} replicas, micro-batches and stages")
    ok = whole & valid(shape, made, job.batch)
    if ok.any():
        return made[ok]
    plain = replace(made, chunks=np.ones_like(made.chunks))
    if not valid(shape, plain, job.batch).any():
        raise PlanError("heads, layers or experts do not divide over these ranks")
    # Interleaved with stages of unequal length, by a table of its own (DeepSeek-V3 with its extra layer, for one).
    first = whole & (made.chunks == made.chunks[whole][0]) & (made.micro_batch == made.micro_batch[whole][0])
    return made[first]


def settings(row: Row, using: Stack) -> Stack:
    """The stack as a row ran it: sequence parallelism came with selective recomputation (arXiv:2205.05198)."""
    if using.name == "megatron-2021":
        return replace(using, sequence_parallel=row["recompute"].startswith("selective"))
    return using
