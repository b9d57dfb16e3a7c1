"""Published measurements of training, as questions to the planner: which model, layout and stack gave which time.

`published.csv` ships with the package: 595 rows with their sources. What a row leaves open (micro-batch, interleave,
recomputation) is chosen as a practitioner would: the fastest that fits.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from moesaic.errors import PlanError
from moesaic.plan.device import Device, device
from moesaic.plan.job import Job
from moesaic.plan.layouts import FULL, NONE, SELECTIVE, Array, Layouts, valid
from moesaic.plan.memory import Memory, memory
from moesaic.plan.shape import Shape
from moesaic.plan.shapes import shape_for_row
from moesaic.plan.stack import Stack, stack
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
# Sources whose MFU counts half of the scores. Neither says so; only then does their MFU move smoothly with the context.
CAUSAL = ("2504.14960", "2407.21783")
MICRO_BATCHES = (1, 2, 4, 8)
SEQUENCES = {"batch": "global_batch_seqs", "devices": "n_devices"}


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
        more = _recomputed(self.open, seconds, space.total, self.device.memory_gb * 1e9)
        if not np.isfinite(more).any():  # the smallest of those that should not fit
            more = np.where(space.total <= space.total.min() * 1.001, 0.0, np.inf)
        seconds = seconds + more
        index = int(np.argmin(seconds))
        picked = np.array([index])
        kept = Memory(*(np.broadcast_to(v, len(self.open))[picked] for v in vars(space).values()))
        return self.open[picked], float(seconds[index]), kept

    def published_seconds(self) -> float:
        """Seconds a step that the published value means."""
        row, value = self.row, float(self.row["value"])
        tokens = self.job.batch_tokens
        metric = row["metric"]
        if metric == "iter_time":
            return value
        if metric == "tokens_per_s_per_gpu":
            return tokens / (value * self.devices)
        if metric == "tokens_per_s":
            return tokens / value
        rate = value * 1e12 if metric.endswith("tflops_per_gpu") else value * self.device.peak("bf16")
        flop = megatron_flop(self.shape, self.job.seq_len, causal=any(word in row["source"] for word in CAUSAL))
        if metric == "hw_tflops_per_gpu":
            flop *= 4 / 3  # with the forward pass that full recomputation repeats (arXiv:2104.04473, eq. 3)
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


def megatron_flop(shape: Shape, seq_len: int, causal: bool = False) -> float:
    """Training FLOP per token as Megatron-LM counts model FLOPs: every product, scores in full or half of them."""
    width = shape.n_heads * (shape.latent.nope_dim + shape.latent.rope_dim if shape.latent else shape.head_dim)
    products = (
        shape.active_parameters - shape.embedding_parameters + (shape.vocab_size * shape.d_model if shape.tied else 0)
    )
    return 6.0 * products + (6.0 if causal else 12.0) * shape.n_layers * seq_len * width


def rows(path: Path | None = None) -> list[Row]:
    """Rows of a CSV file in the layout of the shipped one. Raises PlanError."""
    try:
        text = (files("moesaic.plan").joinpath("published.csv") if path is None else path).read_text(encoding="utf-8")
    except OSError as error:
        raise PlanError(f"cannot read {path}: {error.strerror}") from error
    found: list[Row] = list(csv.DictReader(text.splitlines()))
    if not found or {"id", "metric", "value"} - found[0].keys():
        raise PlanError(f"{path}: needs columns id, metric, value and those of docs/plan-validate.md")
    return found


def why_not(row: Row) -> str:
    """Why a row of training cannot be compared, in a few words; empty when it can."""
    if any(row[c] == "" for c in ("tp", "pp", "dp", "seq_len", "global_batch_seqs", "n_devices")):
        return "no published layout"
    if shape_for_row(row) is None:
        return "not a plain transformer"
    if row["metric"].startswith("gpu_hours"):
        return "a whole run, with its failures"
    return ""


def trial(row: Row) -> Trial:
    """The question that a row asks. Only for rows where `why_not` is empty."""
    shape = shape_for_row(row)
    assert shape is not None
    name = next((s for word, s in STACKS if word in row["source"]), _by_layout(row))
    if name == "megascale" and row["notes"].startswith("Megatron-LM"):
        name = "megatron-2021"
    job = Job(int(row["seq_len"]), int(row["global_batch_seqs"]), row["precision"])
    return Trial(row, shape, device(row["device"]), name, job, _open(row, shape, job))


def _by_layout(row: Row) -> str:
    if row["device"].startswith("TPU"):
        return "xla"
    return "fsdp" if row["zero"] == "3" and row["pp"] == "1" else "megatron-core"


def _open(row: Row, shape: Shape, job: Job) -> Layouts:
    """Every layout that agrees with the row."""
    degree = {name: int(row[name] or 1) for name in ("tp", "pp", "cp", "dp", "ep")}
    per_stage = -(-shape.n_layers // degree["pp"])
    chunks = [int(row["vpp"])] if row["vpp"] else list(range(1, per_stage + 1))
    micro = [int(row["micro_batch"])] if row["micro_batch"] else list(MICRO_BATCHES)
    modes = {"": (NONE, SELECTIVE, FULL), "none": (NONE,), "full": (FULL,)}.get(row["recompute"], (SELECTIVE,))
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
    ok = valid(shape, made, job.batch) & (job.batch % (made.dp * made.micro_batch) == 0)
    whole = made.micro_batches(job.batch) * made.dp * made.micro_batch == job.batch
    return made[ok & whole] if (ok & whole).any() else made[:1]


def training(path: Path | None = None) -> Iterator[Row]:
    """Rows of training."""
    return (row for row in rows(path) if row["category"] == "train")


def settings(row: Row, using: Stack) -> Stack:
    """The stack as a row ran it: sequence parallelism came with selective recomputation (arXiv:2205.05198)."""
    from dataclasses import replace

    if using.name == "megatron-2021":
        return replace(using, sequence_parallel=row["recompute"].startswith("selective"))
    return using


def profile(name: str) -> Stack:
    """The shipped profile of a stack."""
    return stack(name)
