"""Which scenario to take for which aim, how surely, and what that hangs on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moesaic.plan.compare.evaluate import DAYS, Case, Costs
from moesaic.plan.compare.uncertainty import Input, Numbers, draws, quantiles, swings


@dataclass(frozen=True)
class Aim:
    """Something to make small. `joint`: only scenarios that do all the work may win."""

    key: str
    label: str
    unit: str
    of: Callable[[Costs], Numbers]
    joint: bool = False


AIMS = (
    Aim("least_per_year", "least money a year", "$ a year", lambda c: c.per_year, joint=True),
    Aim("cheapest_run", "cheapest training run", "$ a run", lambda c: c.run),
    Aim("soonest_run", "soonest trained", "days", lambda c: c.days),
    Aim("cheapest_tokens", "cheapest tokens served", "$ per 1k tokens", lambda c: c.million_tokens / 1e3),
    Aim("least_up_front", "least money up front", "$", lambda c: c.capex, joint=True),
    Aim("least_power", "least power", "MW", lambda c: c.megawatts, joint=True),
)


@dataclass(frozen=True)
class Priced:
    """A case with its costs at the medians and in every sample."""

    case: Case
    middle: Costs
    sampled: Costs

    @property
    def name(self) -> str:
        """Of the scenario."""
        return self.case.scenario.name

    @property
    def serving_devices(self) -> int:
        """Devices that serve, at the median of the draws."""
        return int(quantiles(np.asarray(self.sampled.serving_devices)).p50)

    @property
    def obstacle(self) -> str:
        """Why it cannot be taken, or nothing."""
        c, run = self.middle, self.case.run
        if run and not run.fits:
            return "training does not fit the memory"
        if run and run.given.runs_per_year * c.days[0] > DAYS:
            return f"{run.given.runs_per_year:g} runs of {c.days[0]:.0f} days are more than a year"
        if self.case.cluster and c.capacity is not None and not c.capacity.meets[0]:
            return "serving misses the latency targets"
        if self.case.cluster and not c.meets[0]:
            return f"serving needs {c.clusters[0]:.0f} clusters and has {self.case.held}"
        return ""


def price_all(cases: Sequence[Case], samples: int, seed: int) -> list[Priced]:
    """Every case at the medians and in the same samples. Raises PlanError."""
    keys = {key for case in cases for key in case.inputs}
    z = draws(keys, samples, seed)
    return [Priced(case, case.costs({}), case.costs(z)) for case in cases]


@dataclass(frozen=True)
class Choice:
    """The scenario to take for an aim, the next one, and the share of samples in which the choice is right."""

    aim: Aim
    best: Priced
    value: float
    chance: float
    next: Priced | None
    next_value: float | None
    tied: tuple[str, ...]  # as good at this aim; the one that costs least a year was taken

    @property
    def reason(self) -> str:
        """In words."""
        if self.next is None or self.next_value is None:
            return "the only one that can be taken"
        if self.tied:
            return f"as good as {', '.join(self.tied)}, and costs least a year"
        if not self.value:
            return f"nothing, unlike {self.next.name}; holds in {100 * self.chance:.0f} % of the draws"
        times = self.next_value / self.value
        return f"{self.next.name} comes to {times:.2f} times that; holds in {100 * self.chance:.0f} % of the draws"


def choices(priced: Sequence[Priced]) -> list[Choice]:
    """The choice for each aim that some scenario has, by the medians of the draws. Obstacles bar a scenario."""
    parts = [any(p.case.parts[i] for p in priced) for i in range(2)]
    out = []
    for aim in AIMS:
        able = [p for p in priced if not p.obstacle and np.isfinite(aim.of(p.middle)).all()]
        if aim.joint:
            able = [p for p in able if list(p.case.parts) == parts]
        if not able:
            continue
        medians = {p.name: (quantiles(aim.of(p.sampled)).p50, quantiles(p.sampled.per_year).p50) for p in able}
        ranked = sorted(able, key=lambda p: medians[p.name])
        value = medians[ranked[0].name][0]
        drawn = np.array(np.broadcast_arrays(*(aim.of(p.sampled) for p in ranked)))  # [scenarios, samples]
        following = ranked[1] if len(ranked) > 1 else None
        next_value = medians[following.name][0] if following else None
        tied = tuple(p.name for p in ranked[1:] if medians[p.name][0] == value)
        chance = float(np.mean(drawn[0] <= drawn.min(axis=0)))
        out.append(Choice(aim, ranked[0], value, chance, following, next_value, tied))
    return out


@dataclass(frozen=True)
class Swing:
    """What moving one input from its p10 to its p90 does, all others at their medians."""

    input: Input
    low: float  # dollars a year at p10 of the input
    high: float  # at p90
    cheapest_low: str  # scenario that costs least there
    cheapest_high: str

    @property
    def size(self) -> float:
        """Dollars between both ends."""
        return abs(self.high - self.low)


def tornado(drawn: Priced, priced: Sequence[Priced]) -> tuple[float, list[Swing]]:
    """Dollars a year of `drawn` at the medians, and the swing of each input that moves it, the widest first."""
    moved, z = swings(drawn.case.inputs)
    own = np.broadcast_to(drawn.case.costs(z).per_year, 1 + 2 * len(moved))
    names = _cheapest(rivals(drawn, priced), z)
    found = [
        Swing(drawn.case.inputs[key], float(own[low]), float(own[low + 1]), names[low], names[low + 1])
        for key, low in zip(moved, range(1, 2 * len(moved), 2), strict=True)
        if own[low] != own[0] or own[low + 1] != own[0]
    ]
    return float(own[0]), sorted(found, key=lambda s: -s.size)


def turning(best: Priced, priced: Sequence[Priced]) -> list[tuple[Input, str, str]]:
    """Every input of any rival that alone makes another one cheapest, with the cheapest at its p10 and at its p90."""
    able = rivals(best, priced)
    inputs: dict[str, Input] = {}
    for p in able:
        for key, one in p.case.inputs.items():
            if key not in inputs or inputs[key].certain:
                inputs[key] = one
    moved, z = swings(inputs)
    names = _cheapest(able, z)
    found = zip(moved, names[1::2], names[2::2], strict=True)
    return [(inputs[key], low, high) for key, low, high in found if {low, high} != {names[0]}]


def rivals(p: Priced, priced: Sequence[Priced]) -> list[Priced]:
    """Scenarios that do the same kinds of work and can be taken; `p` alone where there is none."""
    return [other for other in priced if not other.obstacle and other.case.parts == p.case.parts] or [p]


def _cheapest(able: Sequence[Priced], z: Mapping[str, Numbers]) -> list[str]:
    """The scenario that costs least a year at each position of `z`."""
    n = len(next(iter(z.values())))
    costs = np.array([np.broadcast_to(p.case.costs(z).per_year, n) for p in able])  # [scenarios, n]
    return [able[int(i)].name for i in np.argmin(costs, axis=0)]
