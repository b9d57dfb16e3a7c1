"""A run on a machine that breaks: how often, how often to save, what share of the time is work, how many spares."""

from dataclasses import dataclass

import numpy as np

from moesaic.errors import PlanError
from moesaic.plan.goodput import (
    LLAMA3_RATE,
    LLAMA3_STORAGE,
    STATE_BYTES,
    Real,
    checkpoint_time,
    daly,
    goodput,
    mtti,
    slow_share,
    spares,
    young,
)

# Field of `Faults` -> option of `plan failures`, and how much of the field's unit is one of the option's.
OPTIONS = {
    "rate": ("--rate", 1.0),
    "storage": ("--checkpoint-gb-s", 1e9),
    "per_device": ("--device-gb-s", 1e9),
    "host_copy": ("--async-gb-s", 1e9),
    "node": ("--gpus-per-node", 1),
    "detect": ("--detect", 1.0),
    "restart": ("--restart", 1.0),
    "checkpoint": ("--checkpoint", 1.0),
    "slow_rate": ("--straggler-rate", 1.0),
    "slow_found": ("--straggler-found", 1.0),
    "slowdown": ("--straggler-slowdown", 1.0),
    "repair": ("--repair", 1.0),
}


@dataclass(frozen=True)
class Faults:
    """What breaks and what that costs. Times in seconds, rates in bytes/s; rates of failure per device-hour."""

    rate: float = LLAMA3_RATE
    detect: float = 0.0  # from the failure until it is noticed
    restart: float = 600.0  # from there until training goes on
    storage: float = LLAMA3_STORAGE  # bytes/s in all
    per_device: float = 10e9  # bytes/s to storage from one device (our assumption: a fifth of its network card)
    host_copy: float | None = None  # bytes/s from a device into host memory: training stands still only for this
    checkpoint: float | None = None  # seconds that training stands still, in place of what follows from the size
    slow_rate: float = 0.0  # new slow devices per device-hour
    slow_found: float = 7200.0
    slowdown: float = 0.1
    node: int = 8  # devices that leave together
    repair: float = 86_400.0
    confidence: float = 0.99

    def __post_init__(self) -> None:
        """Raises PlanError for what cannot be, naming the option of `plan failures` and, in brackets, the field."""
        for name, (option, unit) in OPTIONS.items():
            value = getattr(self, name)
            if value is None:
                continue
            positive = name in ("rate", "storage", "per_device", "host_copy", "node")
            bound = "above 0" if positive else "0 or more"
            if not (value > 0 if positive else value >= 0 and np.isfinite(value)):
                raise PlanError(f"{option} {value / unit:g}: give {bound} ({name} of Faults)")
        if not 0 < self.confidence < 1:
            raise PlanError(f"--confidence {self.confidence:g}: give a probability between 0 and 1, for example 0.99")


@dataclass(frozen=True)
class Outcome:
    """What a number of devices makes of `Faults`. Times in seconds."""

    mean: float  # time to interruption
    state: float  # bytes of a checkpoint
    stall: float  # training stands still for one checkpoint
    write: float  # until it is safe on storage
    down: float  # time that one failure costs beside the work since the last checkpoint
    young: float
    daly: float
    interval: float  # the one used: Daly's, but never shorter than a write that goes on behind training
    goodput: float  # slow devices included
    slow: float  # share of the time lost to them
    spare_nodes: int


def outcome(parameters: float, devices: int, faults: Faults) -> Outcome:
    """What failures make of a run of a model of `parameters` on `devices`. Raises PlanError."""
    if devices < 1:
        raise PlanError(f"{devices} devices: give at least 1")
    saved = saving(parameters, devices, faults)
    mean = float(mtti(faults.rate, devices))
    by_daly = float(daly(saved.stall, mean))
    slow = float(slow_share(faults.slow_rate, devices, faults.slow_found, faults.slowdown))
    extra = spares(faults.rate, devices, faults.repair, faults.confidence)
    return Outcome(
        mean=mean,
        state=saved.state,
        stall=saved.stall,
        write=saved.write,
        down=saved.down,
        young=float(young(saved.stall, mean)),
        daly=by_daly,
        interval=float(_interval(by_daly, saved.write, faults)),
        goodput=float(kept(saved, devices, faults, faults.rate)),
        slow=slow,
        spare_nodes=extra,
    )


@dataclass(frozen=True)
class Saving:
    """What does not hang on how often it breaks: bytes of a checkpoint, and seconds as in `Outcome`."""

    state: float
    stall: float
    write: float
    down: float


def saving(parameters: float, devices: int, faults: Faults) -> Saving:
    """A checkpoint of a model of `parameters` on `devices`. Raises PlanError for one that takes no time."""
    state = parameters * STATE_BYTES
    write = float(checkpoint_time(state, faults.storage, devices, faults.per_device))
    if faults.checkpoint is not None:
        write = max(write, faults.checkpoint) if faults.host_copy else faults.checkpoint
    stall = write
    if faults.host_copy:
        stall = float(checkpoint_time(state, devices=devices, per_device=faults.host_copy))
    lag = write - stall if faults.host_copy else 0.0  # a failure in it falls back one checkpoint more
    down = faults.detect + faults.restart + lag
    if stall <= 0:
        raise PlanError("a checkpoint of 0 s: give the seconds that training stands still for one")
    return Saving(state, stall, write, down)


def kept(saved: Saving, devices: int, faults: Faults, rate: Real) -> Real:
    """Share of time that is work kept, slow devices included, at these failures per device-hour."""
    mean = mtti(rate, devices)
    interval = _interval(daly(saved.stall, mean), saved.write, faults)
    slow = slow_share(faults.slow_rate, devices, faults.slow_found, faults.slowdown)
    return np.asarray(goodput(interval, saved.stall, mean, saved.down) * (1 - np.asarray(slow)))


def _interval(by_daly: Real, write: float, faults: Faults) -> Real:
    """Daly's, but never shorter than a write that goes on behind training."""
    return np.maximum(by_daly, write) if faults.host_copy else by_daly
