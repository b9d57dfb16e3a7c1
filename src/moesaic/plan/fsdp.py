"""Why no FSDP across pipeline stages: parameters would be gathered again for each micro-batch.

Block-level FSDP (ZeRO-3) keeps a shard of every layer and gathers the whole layer when its turn comes, for the forward
pass and again for the backward pass, in each of the m micro-batches that a pipeline needs to stay full; each backward
pass scatters its gradients. ZeRO-1 keeps the parameters and pays once a step.
"""

from dataclasses import dataclass, replace

import numpy as np

from moesaic.plan.estimate import Estimate
from moesaic.plan.layer import layer_times
from moesaic.plan.layouts import Array
from moesaic.plan.memory import WEIGHT_BYTES, memory
from moesaic.plan.placement import heaviest_candidates, stage
from moesaic.plan.rank import on_rank
from moesaic.plan.sheet import Sheet, Value
from moesaic.plan.step import group_rate, step_time


@dataclass(frozen=True)
class Gathers:
    """Bytes that one device receives or sends for its stage's parameters, and seconds at the reachable rate."""

    parameters: float  # of the stage on the device
    micro_batches: int
    gather_once: float  # bytes: all parameters of the stage, from the other replicas
    gather_once_s: float
    scatter_once: float  # bytes: all gradients
    scatter_once_s: float
    busy_s: float  # of one micro-batch, to hide behind
    saved: float  # bytes of memory that ZeRO-3 saves on the fullest device
    step_zero1_s: float
    step_zero3_s: float

    @property
    def fsdp_micro(self) -> float:
        """Bytes gathered for one micro-batch: forward and backward."""
        return 2 * self.gather_once

    @property
    def fsdp_step(self) -> float:
        """Bytes gathered in a step."""
        return self.micro_batches * self.fsdp_micro

    @property
    def fsdp_step_s(self) -> float:
        """Seconds of gathering in a step, hidden or not."""
        return 2 * self.micro_batches * self.gather_once_s

    @property
    def fsdp_all(self) -> float:
        """Bytes of a step with the gradients scattered in each micro-batch."""
        return self.fsdp_step + self.micro_batches * self.scatter_once

    @property
    def zero1_all(self) -> float:
        """Bytes of a step of ZeRO-1: gradients scattered once, new parameters gathered once."""
        return self.gather_once + self.scatter_once


def gathers(found: Estimate) -> Gathers:
    """What FSDP would exchange in the layout of `found`, against ZeRO-1 in the same layout."""
    shape, job, stack, device = found.shape, found.job, found.stack, found.device
    one, three = (replace(found.layout, zero=np.array([z])) for z in (1, 3))
    L = one.floats
    parts = on_rank(shape, L)
    loads = []  # of the stages one of which holds most
    for place in (stage(shape, L, index) for index in heaviest_candidates(shape, L)):
        own = place.dense * parts.dense_layer + place.sparse * parts.sparse_layer + parts.outside(place, L)
        loads.append((own, place.sparse * parts.experts, place))
    plain, routed, place = max(loads, key=lambda load: float((load[0] + load[1])[0]))
    replicas, expert_replicas = L.dp * L.cp, L.edp
    moved = plain * (1 - 1 / replicas), routed * (1 - 1 / expert_replicas)
    dense_rate = group_rate(device, stack, replicas, L.tp)
    expert_rate = group_rate(device, stack, expert_replicas, L.ep * L.etp)
    seconds = moved[0] / dense_rate + moved[1] / expert_rate
    times = layer_times(shape, job, one, device, stack)
    work = place.dense * (times.dense.forward + times.dense.backward)
    work = work + place.sparse * (times.sparse.forward + times.sparse.backward) + 3 * times.head * place.last(L)

    def bytes_of(zero: Array) -> float:
        return float(memory(shape, job, replace(one, zero=zero), stack).total[0])

    return Gathers(
        parameters=float((plain + routed)[0]),
        micro_batches=found.micro_batches,
        gather_once=WEIGHT_BYTES * float((moved[0] + moved[1])[0]),
        gather_once_s=WEIGHT_BYTES * float(seconds[0]),
        scatter_once=job.gradient_bytes * float((moved[0] + moved[1])[0]),
        scatter_once_s=job.gradient_bytes * float(seconds[0]),
        busy_s=float(work[0]),
        saved=bytes_of(one.zero) - bytes_of(three.zero),
        step_zero1_s=float(step_time(shape, job, one, device, stack).total[0]),
        step_zero3_s=float(step_time(shape, job, three, device, stack).total[0]),
    )


def add_why_no_fsdp(sheet: Sheet, found: Estimate) -> Gathers:
    """Append the comparison to a sheet."""
    g = gathers(found)
    section = "Why no FSDP"
    m = g.micro_batches

    def add(key: str, label: str, value: float | int, unit: str, formula: str, **inputs: Value) -> None:
        sheet.add(section, key, label, value, unit, formula, **inputs)

    add(
        "stage_parameters",
        "parameters of a stage on a device",
        g.parameters,
        "",
        "layers of the stage / TP, experts / EP",
    )
    add(
        "fsdp_gather_micro_gb",
        "FSDP gathers for a micro-batch",
        g.fsdp_micro / 1e9,
        "GB",
        "2 (forward, backward) x 2 bytes x parameters x (1 - 1 / replicas)",
        parameters=g.parameters,
    )
    add("fsdp_gather_step_gb", "in a step", g.fsdp_step / 1e9, "GB", "m times that", m=m)
    add("fsdp_gather_step_s", "in seconds, hidden or not", g.fsdp_step_s, "s", "bytes / reachable rate of its network")
    add("zero1_gather_step_gb", "ZeRO-1 gathers in a step", g.gather_once / 1e9, "GB", "2 bytes x parameters, once")
    add("zero1_gather_step_s", "in seconds", g.gather_once_s, "s", "bytes / reachable rate of its network")
    add("gather_ratio", "FSDP gathers more by a factor of", 2 * m, "", "2 m: each micro-batch, each direction", m=m)
    add("fsdp_traffic_gb", "FSDP with gradients", g.fsdp_all / 1e9, "GB", "gathers + m scattered gradients")
    add("zero1_traffic_gb", "ZeRO-1 with gradients", g.zero1_all / 1e9, "GB", "one gather + one scattered gradient")
    add("micro_busy_s", "a micro-batch computes", g.busy_s, "s", "time that an exchange can hide behind")
    each = 2 * g.gather_once_s + g.scatter_once_s
    add("micro_exchange_s", "a micro-batch of FSDP exchanges", each, "s", "two gathers and a scatter")
    add("fsdp_step_s", "step with FSDP", g.step_zero3_s, "s", "the same layout, ZeRO-3")
    add("zero1_step_s", "step with ZeRO-1", g.step_zero1_s, "s", "the same layout, ZeRO-1")
    add("fsdp_saves_gb", "memory that FSDP saves in exchange", g.saved / 1e9, "GB", "fullest device, ZeRO-1 - ZeRO-3")
    slower = g.step_zero3_s / g.step_zero1_s
    sheet.note(
        f"FSDP in this pipeline gathers every parameter {2 * m} times a step, {m} micro-batches forward and backward, "
        f"where ZeRO-1 gathers it once: {g.fsdp_step / 1e9:,.0f} GB a device instead of {g.gather_once / 1e9:,.1f}. "
        f"It saves {g.saved / 1e9:.1f} GB of memory and makes the step {slower:.2f} times as long."
    )
    return g
