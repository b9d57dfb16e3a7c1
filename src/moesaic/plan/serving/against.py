"""A claimed cost ratio between two models, split into what arithmetic explains and what utilisation must explain.

Cost per token = FLOPs per token x price of a FLOP / utilisation. On the same devices the price cancels, so a ratio of
costs is a ratio of FLOPs times an inverse ratio of utilisations; the second factor is whatever the first leaves over.
"""

from dataclasses import dataclass

import numpy as np

from moesaic.errors import PlanError
from moesaic.plan.device import Device
from moesaic.plan.serving.batching import ReplicaTimer
from moesaic.plan.serving.memory import tightest
from moesaic.plan.serving.profile import Profile
from moesaic.plan.serving.replica import Replica, replica
from moesaic.plan.shape import Shape

LARGEST = 512  # devices of a replica that is tried


@dataclass(frozen=True)
class Split:
    """`ratio` = `flops` x `utilisation`, for a claimed ratio or a modelled one."""

    ratio: float
    flops: float
    utilisation: float


def split(ratio: float, model: Shape, other: Shape) -> Split:
    """Split a claimed cost ratio. FLOPs per token are twice the active parameters. Raises PlanError."""
    if not ratio > 0:
        raise PlanError(f"cost ratio {ratio:g}: give a number above 0, for example 3")
    flops = model.active_parameters / other.active_parameters
    return Split(ratio, flops, ratio / flops)


def smallest(
    shape: Shape,
    device: Device,
    weights: str,
    context: int,
    *,
    kv: str | None = None,
    dp: int = 1,
    ep: int = 1,
    tp: int | None = None,
    pp: int | None = None,
) -> Replica:
    """The smallest tensor- and pipeline-parallel replica, by doubling, that holds at least one sequence a stage.

    Tensor ranks grow first, as far as the fast link reaches and heads divide. `tp` or `pp` may be given. Raises
    PlanError when LARGEST devices do not hold it.
    """
    for n in (2**i for i in range(LARGEST.bit_length())):
        ranks = tp or max(t for t in (2**i for i in range(8)) if t <= min(n, device.domain) and shape.n_heads % t == 0)
        if pp is not None and tp is None:
            ranks, stages = n, pp
            if n > device.domain or shape.n_heads % n:
                continue
        else:
            stages = n if tp is not None else n // ranks
        if stages > shape.n_layers or ranks * stages * dp > LARGEST:
            break
        model = replica(shape, device, tp=ranks, pp=stages, dp=dp, ep=ep, weights=weights, kv=kv)
        if tightest(model, context)[1].sequences >= model.pp * dp:
            return model
    given = "".join(f" with {name} {value}" for name, value in (("tp", tp), ("pp", pp)) if value)
    raise PlanError(
        f"{shape.name} fits on no number of {device.label} up to {LARGEST}{given} in {weights}; use narrower weights, "
        "a shorter context, or a device with more memory"
    )


@dataclass(frozen=True)
class Cheapest:
    """Decode at the largest batch that fits, where a token is cheapest."""

    model: Replica
    sequences: int
    tokens_per_s: float
    gpu_s_per_token: float
    mfu: float


def cheapest(model: Replica, constants: Profile, engine: str, context: int, cached: float) -> Cheapest:
    """Price decode at capacity; `context` is the length that must fit, `cached` the mean length that is read."""
    sequences = tightest(model, context)[1].sequences
    timer = ReplicaTimer(model, constants, engine)
    step = float(timer.step(np.array([float(sequences)]), np.array([cached]))[0])
    rate = sequences / step
    compute = timer.timers[0].work.expert_compute if model.shape.n_experts > 1 else timer.timers[0].work.other_compute
    peak = model.device.peak(compute) * model.devices
    return Cheapest(model, sequences, rate, model.devices / rate, rate * 2 * model.shape.active_parameters / peak)


def modelled(mine: Cheapest, other: Cheapest) -> Split:
    """The ratio of device time per token, split the same way."""
    ratio = mine.gpu_s_per_token / other.gpu_s_per_token
    flops = mine.model.shape.active_parameters / other.model.shape.active_parameters
    return Split(ratio, flops, ratio / flops)
