"""Dollars per thousand tokens against the batch, and how well the devices are used. Vectorised over batches."""

from dataclasses import dataclass

import numpy as np

from moesaic.errors import PlanError
from moesaic.plan.routing import Numbers
from moesaic.plan.serving.batching import Load, ReplicaTimer


@dataclass(frozen=True)
class Workload:
    """What one request asks: tokens in and out."""

    prompt: float
    output: float

    @property
    def context(self) -> float:
        """Cached tokens of a decoding sequence on average over its life."""
        return self.prompt + self.output / 2

    @property
    def total(self) -> float:
        """Tokens in and out."""
        return self.prompt + self.output


@dataclass(frozen=True)
class Curve:
    """Arrays over the batch. `output_*`: decode alone, the machine never interrupted; `mixed_*`: prompts included."""

    batch: Numbers  # sequences in one micro-batch of one attention copy
    sequences: Numbers  # in flight, on the replica
    step_s: Numbers
    output_tokens_per_s: Numbers
    output_usd_per_1k: Numbers
    mfu: Numbers  # decode alone, of the peak of the arithmetic in use
    mbu: Numbers  # decode alone, of the nominal memory bandwidth, slowest stage
    load: Load
    mixed_usd_per_1k: Numbers  # of all tokens, in and out


def curve(timer: ReplicaTimer, batches: Numbers, work: Workload, usd_per_gpu_hour: float, chunk: float) -> Curve:
    """Price one replica at each batch. Raises PlanError for a price that is not positive."""
    if not usd_per_gpu_hour > 0:
        raise PlanError(f"price {usd_per_gpu_hour:g}: give dollars per device and hour, more than 0")
    m = timer.model
    batches = np.asarray(batches, float)
    sequences = batches * m.pp * m.dp
    context = np.full_like(batches, work.context)
    step = timer.step(sequences, context)
    rate = sequences / step
    usd_per_s = usd_per_gpu_hour * m.devices / 3600
    slowest = max(timer.timers, key=lambda t: float(t.bytes_read(np.ones(1), np.ones(1))[0]))
    peak = m.device.peak(slowest.work.expert_compute) * m.devices
    read = slowest.bytes_read(batches, context)
    load = timer.closed(sequences, np.array(work.prompt), np.array(work.output), chunk)
    return Curve(
        batches,
        sequences,
        step,
        rate,
        usd_per_s / rate * 1e3,
        rate * 2 * m.shape.active_parameters / peak,
        read / (step / m.pp) / (m.device.memory_tb_s * 1e12),
        load,
        usd_per_s / (load.requests_per_s * work.total) * 1e3,
    )


def prompt_usd_per_1k(timer: ReplicaTimer, work: Workload, usd_per_gpu_hour: float, chunk: float) -> float:
    """Dollars per thousand prompt tokens on a replica that only prefills, its pipeline full."""
    m = timer.model
    seconds = float(prefill_s(timer, np.array([work.prompt]), chunk)[0])
    return usd_per_gpu_hour * m.devices / 3600 * seconds / work.prompt * 1e3


def prefill_s(timer: ReplicaTimer, prompt: Numbers, chunk: float) -> Numbers:
    """Seconds that one prompt occupies a replica that only prefills, per attention copy at work, its pipeline full."""
    zero = np.zeros(1)
    chunks = np.ceil(prompt / chunk)
    size = prompt / chunks
    return chunks * timer.turn(zero, zero, size, (prompt - size) / 2) / timer.model.dp


@dataclass(frozen=True)
class Pools:
    """Replicas that only prefill beside replicas that only decode."""

    prefill_share: float  # of the replicas
    requests_per_s: float  # of one replica on average over both pools
    transfer_s: float  # of one prompt's cache over the scale-out network, all links of a replica together
    usd_per_1k: float  # of all tokens


def disaggregated(timer: ReplicaTimer, batch: float, work: Workload, usd_per_gpu_hour: float, chunk: float) -> Pools:
    """Pool sizes that balance at a batch (DistServe, arXiv:2401.09670): each request takes t_p seconds of a prefill
    replica and output / rate seconds of a decode replica, and the pools are sized in that proportion."""
    m = timer.model
    sequences = np.array([batch * m.pp * m.dp])
    t_prefill = float(prefill_s(timer, np.array([work.prompt]), chunk)[0])
    t_decode = float((work.output * timer.step(sequences, np.array([work.context])) / sequences)[0])
    cache = m.shape.kv_bytes_per_token(m.kv_value_bytes) * work.prompt
    links = m.device.network_gb_s * 1e9 * timer.constants.link * min(m.tp, max(m.shape.n_kv_heads, 1)) * m.pp
    each = t_prefill + t_decode
    usd = usd_per_gpu_hour * m.devices / 3600 * each / work.total * 1e3
    return Pools(t_prefill / each, 1 / each, cache / links, usd)


def batches_for(
    timer: ReplicaTimer, target_usd_per_1k: float, work: Workload, usd_per_gpu_hour: float, chunk: float
) -> tuple[int | None, int | None]:
    """The smallest batches whose output alone, and whose tokens of both kinds, cost no more than the target.

    None where no batch up to 4096 does.
    """
    found = curve(timer, np.arange(1, 4097, dtype=float), work, usd_per_gpu_hour, chunk)

    def first(usd: Numbers) -> int | None:
        reached = np.flatnonzero(usd <= target_usd_per_1k)
        return int(found.batch[reached[0]]) if len(reached) else None

    return first(found.output_usd_per_1k), first(found.mixed_usd_per_1k)
