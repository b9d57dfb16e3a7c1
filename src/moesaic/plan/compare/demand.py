"""From requests per second to clusters: what one serves within the latency caps, and how many that takes."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moesaic.errors import PlanError
from moesaic.plan.compare.scenarios import Serving
from moesaic.plan.compare.uncertainty import Numbers
from moesaic.plan.device import Device, device
from moesaic.plan.serving.batching import ReplicaTimer
from moesaic.plan.serving.memory import tightest
from moesaic.plan.serving.profile import profile
from moesaic.plan.serving.question import UNFITTED_SIGMA
from moesaic.plan.serving.replica import Replica, replica
from moesaic.plan.shape import Shape
from moesaic.plan.shapes import read_shape
from moesaic.plan.sheet import Interval

POINTS = 96  # loads at which a cluster is looked at
STAGES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 16)  # pipeline stages that are tried


@dataclass(frozen=True)
class Capacity:
    """What one cluster serves; arrays `[samples]`."""

    requests_per_s: Numbers
    sequences: Numbers
    token_s: Numbers
    first_s: Numbers
    meets: NDArray[np.bool_]  # whether the caps hold at any load


@dataclass(frozen=True)
class Cluster:
    """One replica and its steady states over the number of requests in it, `[loads]`."""

    model: Replica
    given: Serving
    most: int  # sequences that fit
    concurrency: Numbers
    token_s: Numbers
    first_s: Numbers
    sigma_token: float
    sigma_first: float

    def capacity(self, token_factor: Numbers, first_factor: Numbers) -> Capacity:
        """The most requests per second within the caps when times are longer by these factors, `[samples]`.

        Where no load meets the caps, the cluster runs at the load planned for factors of 1, or, when that meets them
        neither, at the load that serves most.
        """
        token_factor, first_factor = np.broadcast_arrays(token_factor, first_factor)
        token = self.token_s * token_factor[:, None]  # [samples, loads]
        first = self.first_s * first_factor[:, None]
        rate = self.concurrency / (first + (self.given.output - 1) * token)
        ok = (token <= self.given.tpot_ms / 1e3) & (first <= self.given.ttft_s)
        best = np.argmax(np.where(ok, rate, -1.0), axis=1)
        meets = np.asarray(ok.any(axis=1))
        at = np.where(meets, best, self._planned)
        rows = np.arange(len(at))
        return Capacity(rate[rows, at], self.concurrency[at], token[rows, at], first[rows, at], meets)

    @property
    def _planned(self) -> int:
        rate = self.concurrency / (self.first_s + (self.given.output - 1) * self.token_s)
        ok = (self.token_s <= self.given.tpot_ms / 1e3) & (self.first_s <= self.given.ttft_s)
        return int(np.argmax(np.where(ok, rate, -1.0) if ok.any() else rate))

    def layout_words(self) -> str:
        """The layout in a few words."""
        m = self.model
        more = [f"{name} {n}" for name, n in (("dp", m.dp), ("ep", m.ep)) if n > 1]
        return " x ".join([f"tp {m.tp}", f"pp {m.pp}", *more])


def serving_cluster(given: Serving, on: Device) -> Cluster:
    """The cluster of a scenario: as laid out, or the layout that serves most within the caps for each device.

    Raises PlanError when the model fits nowhere.
    """
    shape = read_shape(given.source)
    if given.layout:
        return _cluster(_laid(given, shape, on, **dict(given.layout)), given)
    # The layout does not hang on the demand: scenarios that differ in it only share the search.
    asked = replace(given, requests_per_s=Interval(1, 1, 1), peak_over_mean=1.0)
    return replace(_best(shape, on.name, asked), given=given)


@lru_cache(maxsize=64)
def _best(shape: Shape, name: str, given: Serving) -> Cluster:
    on, one = device(name), np.ones(1)
    best: Cluster | None = None
    score = (False, -1.0)
    refused = f"{shape.name} with {given.weights} weights fits no cluster tried of {on.label}; use narrower weights"
    tensor = [t for t in (1, 2, 4, 8, 16, 32, 64) if t <= on.domain and shape.n_heads % t == 0]
    for tp, pp in ((t, p) for t in tensor for p in STAGES if p <= shape.n_layers):
        try:
            found = _cluster(_laid(given, shape, on, tp=tp, pp=pp), given)
        except PlanError:  # does not fit
            continue
        now = found.capacity(one, one)
        mine = (bool(now.meets[0]), float(now.requests_per_s[0]) / found.model.devices)
        if mine > score:
            best, score = found, mine
    if best is None:
        raise PlanError(refused)
    return best


def _laid(given: Serving, shape: Shape, on: Device, **layout: int) -> Replica:
    return replica(shape, on, weights=given.weights, kv=given.kv, **layout)


def _cluster(model: Replica, given: Serving) -> Cluster:
    constants = profile()
    engine = constants.engine(given.engine)
    context = given.prompt + given.output / 2
    stage, tight = tightest(model, context, chunk=given.chunk)
    if tight.sequences < 1:
        raise PlanError(
            f"serving: weights of {tight.weight_bytes / 1e9:.1f} GB and {tight.reserve_bytes / 1e9:.1f} GB of reserve "
            f"leave no room for a sequence in {model.device.memory_gb:g} GB (stage {stage.index}); use narrower "
            "weights, more stages (pp) or a device with more memory"
        )
    loads = np.unique(np.round(np.geomspace(1, tight.sequences, POINTS)))
    state = ReplicaTimer(model, constants, given.engine).closed(
        loads, np.array(float(given.prompt)), np.array(float(given.output)), given.chunk
    )
    extra = 0.0 if model.device.generation in constants.generations else UNFITTED_SIGMA
    sigma = (float(np.hypot(engine.sigma_decode, extra)), float(np.hypot(engine.sigma_first, extra)))
    return Cluster(model, given, tight.sequences, loads, state.token_s, state.first_s, *sigma)


def clusters_needed(requests_per_s: Numbers, peak_over_mean: float, capacity: Numbers) -> Numbers:
    """Whole clusters that serve the peak."""
    return np.asarray(np.ceil(requests_per_s * peak_over_mean / capacity - 1e-9))
