"""Published inference measurements as cases that the model can price, and their predictions."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from moesaic.errors import PlanError
from moesaic.plan.device import device
from moesaic.plan.scored import Scored
from moesaic.plan.serving.batching import ReplicaTimer
from moesaic.plan.serving.profile import Profile, profile
from moesaic.plan.serving.replica import Replica, replica
from moesaic.plan.shape import Shape
from moesaic.plan.shapes import serving_shape
from moesaic.plan.sheet import Interval

Row = Mapping[str, str]
Solved = tuple[tuple[float, float], float]  # (s between tokens, output tokens/s), s to first token
METRICS = ("tpot", "ttft", "output_tokens_per_s", "output_tokens_per_s_per_gpu", "output_tokens_per_s_per_node")
NODE = 8  # devices of a node where a rate is per node
STATIC_CHUNK, CHUNK = 16384, 8192  # prompt tokens of one pass: TensorRT-LLM 0.5 benchmarks, default of today's engines


@dataclass(frozen=True)
class Case:
    """One published number. `model` is None when the row does not say enough to price it."""

    id: str
    name: str  # of the model, as published
    split: str
    partition: Literal["decode", "first token"]
    unit: str
    published: float
    model: Replica | None
    engine: str
    concurrency: float
    prompt: float
    output: float
    metric: str
    devices: int
    scored: bool
    reason: str
    unsure: bool  # multi-token prediction may have been on

    @property
    def comparable(self) -> bool:
        """Whether constants may be tuned on it: layout, load and lengths are known."""
        return self.model is not None


def _number(row: Row, key: str) -> float:
    return float(row[key]) if row[key] else 0.0


def _engine(row: Row) -> str:
    if "static batch" in row["notes"] or "FasterTransformer" in row["source"] or "fastertransformer" in row["source"]:
        return "static"
    if "release 0.5" in row["source"]:
        return "static"
    text = f"{row['id']} {row['notes']} {row['source']}".lower()
    named = [(text.index(k), e) for k, e in (("sglang", "sglang"), ("vllm", "vllm"), ("trtllm", "trtllm")) if k in text]
    return min(named)[1] if named else "trtllm"


def _unusable(row: Row) -> str:
    """Why a row cannot be priced, or nothing."""
    if row["id"].startswith("mlperf"):
        return "no layout, no load (MLPerf total)"
    if "MTP 3" in row["notes"]:
        return "multi-token prediction, acceptance unknown"
    if not row["global_batch_seqs"] and not row["micro_batch"]:
        return "concurrency not stated"
    if not row["input_len"] or not row["output_len"]:
        return "lengths not stated"
    if row["metric"] not in METRICS:
        return f"{row['metric']}: not a quantity that is modelled"
    if not row["n_devices"] or not (row["tp"] or row["n_devices"] == "1"):
        return "no layout"
    return ""


def _replica(row: Row, shape: Shape) -> Replica:
    tp, pp, dp, ep = (int(_number(row, k)) or 1 for k in ("tp", "pp", "dp", "ep"))
    if tp * pp * dp != int(_number(row, "n_devices")):
        raise PlanError("layout does not multiply to the devices")
    precision = row["precision"]
    kv = "bf16" if "FP16 KV" in row["notes"] else None
    return replica(shape, device(row["device"]), tp=tp, pp=pp, dp=dp, ep=ep, weights=precision, kv=kv)


def cases(rows: Sequence[Row]) -> list[Case]:
    """All inference rows; a row whose notes give a time to first token makes a second case, `ID:ttft`."""
    out = []
    for row in rows:
        if row["category"] != "infer":
            continue
        reason = _unusable(row)
        model = None
        if not reason:
            try:
                shape = serving_shape(row)
                model = _replica(row, shape) if shape else None
                reason = "" if shape else "shape not known"
            except PlanError as error:
                reason = f"layout: {error}"
        reason = reason or ("" if row["precision"] in ("bf16", "fp16") else f"{row['precision']}: listed, not scored")
        load = _number(row, "global_batch_seqs") or _number(row, "micro_batch") or 1.0
        first = row["metric"] == "ttft"
        common = (_engine(row), load, _number(row, "input_len"), _number(row, "output_len"))
        n = int(_number(row, "n_devices"))
        partition: Literal["decode", "first token"] = "first token" if first else "decode"
        unsure = "(MTP) flag not" in row["notes"]
        scored = model is not None and not reason
        base = (row["id"], row["model"], row["split"], partition, row["unit"], float(row["value"]), model)
        out.append(Case(*base, *common, row["metric"], n, scored, reason, unsure))
        if note := re.search(r"TTFT ([\d.]+) ms", row["notes"]):
            base = (f"{row['id']}:ttft", row["model"], row["split"], "first token", "ms", float(note[1]), model)
            out.append(Case(*base, *common, "ttft", n, scored, reason, unsure))
    return out


def predict(case: Case, constants: Profile) -> float:
    """The median prediction in the unit of the row. The case must be comparable."""
    return in_unit(case, predict_both(case, constants))


def predict_both(case: Case, constants: Profile) -> Solved:
    """Median seconds between tokens and output tokens per second, and median seconds to the first token."""
    assert case.model is not None
    timer = ReplicaTimer(case.model, constants, case.engine)
    load, prompt, output = (np.array([x]) for x in (case.concurrency, case.prompt, case.output))
    if case.engine == "static":
        prefill, steps = timer.static(load, prompt, output, STATIC_CHUNK)
        prefill = prefill + timer.engine.request_s
        first, token = float(prefill[0]), float(timer.step(load, prompt + output / 2)[0])
        rate = float((load * output / (prefill + steps))[0])
    else:
        state = timer.closed(load, prompt, output, CHUNK, together=True)
        first, token = float(state.first_s[0]), float(state.token_s[0])
        rate = float(state.output_tokens_per_s(case.output)[0])
    return (token, rate), first


def in_unit(case: Case, solved: Solved) -> float:
    """The number of `predict_both` that the case is about, in its unit."""
    (token, rate), first = solved
    if case.partition == "first token" or case.metric == "tpot":
        seconds = first if case.partition == "first token" else token
        return seconds if case.unit == "s" else seconds * 1e3
    per = {"gpu": case.devices, "node": case.devices / NODE}.get(case.metric.rpartition("_")[2], 1)
    return rate / per


def validation_rows(path: Path, constants: Profile | None = None) -> list[Scored]:
    """Every inference row of a table of measurements beside its prediction. Raises OSError."""
    with path.open(encoding="utf-8", newline="") as file:
        return scored_rows(list(csv.DictReader(file)), constants)


def scored_rows(rows: Sequence[Row], constants: Profile | None = None) -> list[Scored]:
    """The same of rows that were read already: every column present, numbers being numbers."""
    constants = constants or profile()
    out = []
    for case in cases(rows):
        predicted = None
        if case.comparable:
            engine = constants.engine(case.engine)
            sigma = engine.sigma_first if case.partition == "first token" else engine.sigma_decode
            predicted = Interval.around(predict(case, constants), sigma)
        out.append(
            Scored(case.id, case.split, case.partition, case.unit, case.published, predicted, case.scored, case.reason)
        )
    return out
