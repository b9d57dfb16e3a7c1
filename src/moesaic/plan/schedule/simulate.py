"""A step of a pipeline, operation by operation: when each begins, what waits for what, how long all takes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesaic.errors import PlanError
from moesaic.plan.schedule.orders import Kind, Op, Orders, orders

PerStage = float | Sequence[float]


@dataclass(frozen=True)
class Simulation:
    """A simulated step; times in the unit of the costs."""

    time: float
    busy: tuple[float, ...]  # by rank
    spans: tuple[tuple[int, float, float, str], ...]  # rank, begin, end, kind (F, B, I, W)
    operations: tuple[int, ...]  # number of them, by rank

    @property
    def bubble(self) -> float:
        """Share of the step in which a rank idles, on average over ranks."""
        return 1 - sum(self.busy) / (len(self.busy) * self.time)

    @property
    def idle(self) -> tuple[float, ...]:
        """Share of the step in which each rank idles."""
        return tuple(1 - busy / self.time for busy in self.busy)

    @property
    def cell_bubble(self) -> float:
        """Share of idle cells in PyTorch's printed table, when F, I and W cost 1 and B costs 2.

        `get_schedule_ops(add_spacing=True)` lets a whole backward last two steps but lists it once, so counting cells
        overstates the bubble of schedules with whole backwards: 6.8 % for p = 15, v = 8, m = 36, where the time idled
        is 4.6 %. Kept to compare with such tables.
        """
        cells = max(self.time - busy + n for busy, n in zip(self.busy, self.operations, strict=True))
        return 1 - sum(self.operations) / (len(self.busy) * cells)


def simulate(
    plan: Orders,
    forward: PerStage = 1.0,
    backward: PerStage = 2.0,
    weight_share: float = 0.5,
    transfer: float = 0.0,
) -> Simulation:
    """Run every operation as early as its rank's order and its inputs allow.

    `forward` and `backward` cost one micro-batch in one stage (a chunk of a rank), one number or one per stage;
    `weight_share` of a split backward is W. `transfer` passes between an operation and one that needs it on another
    rank. Raises PlanError for costs that are not positive or an order in which operations wait for each other.
    """
    last = plan.p * plan.v - 1
    f, b = _per_stage(forward, last + 1, "forward"), _per_stage(backward, last + 1, "backward")
    if not 0 < weight_share < 1 or transfer < 0:
        raise PlanError(
            f"weight_share {weight_share} must lie between 0 and 1, transfer {transfer} must not be negative"
        )
    cost = {"F": f, "B": b, "I": [x * (1 - weight_share) for x in b], "W": [x * weight_share for x in b]}
    gradient = "I" if plan.kind in ("zero_bubble", "zbv") else "B"
    home = [plan.rank_of(stage) for stage in range(last + 1)]
    ends: dict[Op, float] = {}
    waits: dict[Op, int] = {}  # operation -> the rank that waits for it
    position, clock = [0] * plan.p, [0.0] * plan.p
    spans: list[tuple[int, float, float, str]] = []
    ready = list(range(plan.p))
    while ready:
        rank = ready.pop()
        order, now = plan.ranks[rank], clock[rank]
        for i in range(position[rank], len(order)):
            op = order[i]
            begin = now
            need = _input(op, last, gradient)
            if need is not None:
                arrived = ends.get(need)
                if arrived is None:
                    waits[need] = rank
                    position[rank] = i
                    break
                begin = max(now, arrived + (transfer if home[need.stage] != rank else 0.0))
            now = ends[op] = begin + cost[op.kind][op.stage]
            spans.append((rank, begin, now, op.kind))
            if op in waits:
                ready.append(waits.pop(op))
        else:
            position[rank] = len(order)
        clock[rank] = now
    if waits:
        raise PlanError(f"the {plan.kind} order cannot run: ranks {sorted(waits.values())} wait for each other")
    counts = tuple(len(order) for order in plan.ranks)
    busy = tuple(sum(cost[op.kind][op.stage] for op in order) for order in plan.ranks)
    return Simulation(max(clock), busy, tuple(spans), counts)


def _input(op: Op, last: int, gradient: str) -> Op | None:
    """The operation whose result `op` needs; what a rank did itself before is a matter of its order."""
    kind, stage, micro_batch = op
    if kind == "F":
        return Op("F", stage - 1, micro_batch) if stage else None
    if kind == "W":
        return Op("I", stage, micro_batch)
    return Op(gradient, stage + 1, micro_batch) if stage < last else Op("F", stage, micro_batch)


def _per_stage(value: PerStage, n: int, name: str) -> list[float]:
    values = np.broadcast_to(np.asarray(value, dtype=float), (n,)) if np.ndim(value) == 0 else np.asarray(value, float)
    if values.shape != (n,):
        raise PlanError(f"{name}: {values.size} costs for {n} stages; give one number or one per stage")
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise PlanError(f"{name}: costs must be positive numbers")
    out: list[float] = values.tolist()
    return out


@dataclass(frozen=True)
class UnevenStep:
    """A step whose ranks differ in speed or load."""

    simulation: Simulation
    bound: float  # no schedule of these ranks is faster
    even: float  # the step if the same work were spread evenly
    slowest: int  # rank

    @property
    def price(self) -> float:
        """How much longer the step takes than with even ranks: 0.1 is 10 %."""
        return self.simulation.time / self.even - 1


def uneven_step(
    kind: Kind, p: int, m: int, v: int, forward: Sequence[float], backward: Sequence[float], transfer: float = 0.0
) -> UnevenStep:
    """The step of `p` ranks of which rank s takes forward[s] and backward[s] for all its chunks of a micro-batch.

    The chunks of a rank are taken as equal. Mixed hardware is priced by giving slow ranks their longer times.
    Raises PlanError.
    """
    plan = orders(kind, p, m, v)
    f, b = np.array(_per_stage(forward, p, "forward")), np.array(_per_stage(backward, p, "backward"))
    home = [plan.rank_of(stage) for stage in range(p * v)]

    def run(f: np.ndarray, b: np.ndarray) -> Simulation:
        return simulate(plan, (f[home] / v).tolist(), (b[home] / v).tolist(), transfer=transfer)

    simulation = run(f, b)
    even = run(np.full(p, f.mean()), np.full(p, b.mean())).time
    return UnevenStep(
        simulation, lower_bound(m, v, f, b, split=kind in ("zero_bubble", "zbv")), even, int((f + b).argmax())
    )


def lower_bound(m: int, v: int, forward: np.ndarray, backward: np.ndarray, split: bool = False) -> float:
    """A time that no schedule with chunks in rounds beats: m x the slowest rank + the fill before and the drain after.

    Rank s cannot begin before the first chunks of the ranks before it, sum_(i<s) F_i / v, and after its last backward
    the ranks before it still take sum_(i<s) B_i / v (with split backwards it can fill that time with weights: none).
    """
    before = np.cumsum(forward) - forward
    after = 0 if split else np.cumsum(backward) - backward
    return float((m * (forward + backward) + (before + after) / v).max())
