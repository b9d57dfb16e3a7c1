"""From requests per second to clusters: what one serves within the latency caps, and how many that takes."""

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

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
from moesaic.plan.serving.replica import WEIGHT_BYTES, Replica, replica
from moesaic.plan.shape import Shape
from moesaic.plan.shapes import read_shape
from moesaic.plan.sheet import Interval

POINTS = 96  # loads at which a cluster is looked at
STAGES = (1, 2, 3, 4, 6, 8, 12, 16)  # pipeline stages that are tried
DEEPEST_WITH_COPIES = 4  # with attention copies beside them
LARGEST = 512  # devices of a cluster that is tried
FULL_LOOKS = 3


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
    """Of all layouts tried, those that promise most at a first look are looked at in full."""
    on, one = device(name), np.ones(1)
    promising = sorted(_looks(shape, on, given), key=lambda look: look[0], reverse=True)[:FULL_LOOKS]
    if not promising:
        raise PlanError(
            f"serving: {shape.name} with {given.weights} weights fits no cluster tried of {on.label}; "
            "use narrower weights or a device with more memory"
        )

    def worth(found: Cluster) -> tuple[bool, float]:
        now = found.capacity(one, one)
        return bool(now.meets[0]), float(now.requests_per_s[0]) / found.model.devices

    return max((_cluster(model, given) for _, model in promising), key=worth)


def _looks(shape: Shape, on: Device, given: Serving) -> list[tuple[tuple[bool, float], Replica]]:
    """Each layout that fits, with whether it meets the targets and its requests per second and device, both without
    the feedback of one on the other: the first step of the fixed point."""
    tensor = [t for t in (1, 2, 4, 8, 16, 32, 64) if t <= on.domain and shape.n_heads % t == 0]
    copies = (1, 2, 4, 8, 16, 32) if shape.n_experts > 1 else (1,)
    prompt, output = np.array([float(given.prompt)]), np.array([float(given.output)])
    context = prompt + output / 2
    out = []
    for tp, pp, dp in product(tensor, STAGES, copies):
        spread = max(e for e in range(1, shape.n_experts + 1) if shape.n_experts % e == 0 and tp * dp % e == 0)
        too_wide = tp * pp * dp > LARGEST or pp > shape.n_layers or (dp > 1 and pp > DEEPEST_WITH_COPIES)
        if (
            too_wide
            or shape.total_parameters * WEIGHT_BYTES.get(given.weights, 2.0) > tp * pp * dp * on.memory_gb * 1e9
        ):
            continue
        for ep in sorted({1, spread}) if dp == 1 else (spread,):
            model = _laid(given, shape, on, tp=tp, pp=pp, dp=dp, ep=ep)
            fits = tightest(model, float(context[0]), chunk=given.chunk)[1].sequences
            if fits < 1:
                continue
            loads = np.geomspace(1, fits, 12)
            timer = ReplicaTimer(model, profile(), given.engine)
            taken, first = timer.prompt(prompt, loads, context, given.chunk, loads / output / pp)
            token = timer.step(loads, context) + np.maximum(loads - dp, 0) / output * taken
            rate = loads / (first + output * token) / model.devices
            ok = (token <= given.tpot_ms / 1e3) & (first <= given.ttft_s)
            out.append(((bool(ok.any()), float(np.max(rate[ok] if ok.any() else rate))), model))
    return out


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
