"""A scenario with everything looked up, and what it costs at any values of its uncertain inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from moesaic.errors import PlanError
from moesaic.plan.compare.demand import Capacity, Cluster, clusters_needed, serving_cluster
from moesaic.plan.compare.fields import naming
from moesaic.plan.compare.money import (
    HOURS,
    MONTHS,
    Owned,
    amortisation,
    capex,
    energy_per_year,
    hall_per_year,
)
from moesaic.plan.compare.scenarios import MONEY, Scenario
from moesaic.plan.compare.training import RATE, Run, training_run
from moesaic.plan.compare.uncertainty import Input, Numbers
from moesaic.plan.cost import dollars, megawatts
from moesaic.plan.failures import Faults
from moesaic.plan.goodput import spares
from moesaic.plan.prices import UNITS, Prices
from moesaic.plan.sheet import Interval

DAYS = 365.0
NODE = Faults().node  # devices that leave together


@dataclass(frozen=True)
class Costs:
    """What a scenario comes to; arrays `[samples]`. NaN where it does not train or serve. Dollars, MW, days."""

    days: Any
    goodput: Any
    run: Any  # dollars of one run
    served: Any  # dollars a year of serving
    million_tokens: Any  # dollars
    clusters: Any
    utilisation: Any  # mean demand over what the clusters can serve
    meets: Any
    megawatts: Any
    capex: Any
    opex: Any  # a year; rent counts
    per_year: Any  # dollars for the runs of a year and for serving
    training: Owned | None  # the machines, where bought
    serving: Owned | None
    capacity: Capacity | None
    serving_devices: Any


def drawn_mw(devices: Any, scenario: Scenario, pue: Numbers) -> Any:
    """Average power of so many devices of a scenario, in MW."""
    d = scenario.device
    return megawatts(devices, d.watts, d.host_watts, utilisation=scenario.money.draw_share, pue=pue)


@dataclass(frozen=True)
class Case:
    """A scenario with its run, its cluster and its inputs."""

    scenario: Scenario
    run: Run | None
    cluster: Cluster | None
    inputs: Mapping[str, Input]
    rent: Input | None  # also of a bought device, to compare
    purchase: Input | None

    @property
    def where(self) -> str:
        """How errors call it."""
        return self.scenario.where

    @property
    def parts(self) -> tuple[bool, bool]:
        """Whether it trains, whether it serves."""
        return self.run is not None, self.cluster is not None

    def value(self, key: str, z: Mapping[str, Numbers]) -> Numbers:
        """An input at `z`."""
        found = self.inputs[key]
        return found.at(z[key] if key in z else np.zeros(1))

    @cached_property
    def spare_share(self) -> float:
        """Spare devices of a bought training machine over its devices."""
        return 0.0 if self.run is None else self.run.spare_nodes * NODE / self.run.asked

    @property
    def storage_tb(self) -> float:
        """Storage beside the training machine."""
        if self.run is None:
            return 0.0
        money = self.scenario.money
        return money.storage_tb if money.storage_tb is not None else self.run.storage_tb(money.checkpoints_kept)

    def own(self, devices: Any, spare_share: Any, storage_tb: float, z: Mapping[str, Numbers]) -> Owned:
        """A bought machine of `devices`. Needs a purchase price among the inputs."""
        s, money = self.scenario, self.scenario.money
        assert self.purchase
        bought = capex(
            devices, spare_share, self.purchase.at(z.get(self.purchase.key, np.zeros(1))),
            self.value("network", z), storage_tb, self.value("storage_bought", z),
        )  # fmt: skip
        drawn = drawn_mw(devices, s, self.value("pue", z))
        return Owned(
            bought,
            amortisation(bought, self.value("years", z), money.residual_share, money.interest_per_year),
            energy_per_year(drawn, self.value("kwh", z)),
            hall_per_year(devices * (1 + spare_share), s.device.watts, s.device.host_watts, self.value("hall", z)),
            bought * self.value("operation", z),
        )

    def costs(self, z: Mapping[str, Numbers]) -> Costs:
        """Everything at standard normal `z` of the inputs, `[samples]`. Raises PlanError."""
        with naming(self.where):
            return self._costs(z)

    def _costs(self, z: Mapping[str, Numbers]) -> Costs:
        s, nothing = self.scenario, np.full(1, np.nan)
        buys = s.mode == "buy"
        zero = np.zeros(1)
        took = good = run = served = million = clusters = busy = nothing
        meets: Any = np.ones(1, bool)
        capital = opex = total = zero
        watts = zero
        training = serving = state = None
        devices = zero
        if self.run:
            rate = self.value("failures", z)
            took, good = self.run.days(self.value(self._mfu, z), rate), self.run.goodput(rate)
            runs = self.run.given.runs_per_year
            if buys:
                training = self.own(self.run.asked, self.spare_share, self.storage_tb, z)
                run = training.per_year * took / DAYS / self.value("busy", z)
                capital, opex = capital + training.capex, opex + training.opex
            else:
                stored = self.storage_tb * self.value("storage_rented", z) * took * MONTHS / DAYS
                run = dollars(self.run.asked, took, self._hourly(z)) + stored
                opex = opex + runs * run
            total = total + runs * run
            draw = drawn_mw(self.run.devices, s, self.value("pue", z))
            watts = watts + draw
        if self.cluster:
            g = self.cluster.given
            state = self.cluster.capacity(self.value(self._token, z), self.value(self._first, z))
            demand = self.value("demand", z)
            clusters = clusters_needed(demand, g.peak_over_mean, state.requests_per_s)
            busy = demand / (clusters * state.requests_per_s)
            meets = state.meets
            devices = clusters * self.cluster.model.devices
            if self.held is not None:
                meets = meets & (clusters <= self.held)
                busy = demand / (self.held * state.requests_per_s)
                devices = np.full_like(devices, float(self.scenario.count or 0))
            if buys:
                serving = self.own(devices, self.serving_spares(devices) / devices, 0.0, z)
                served = serving.per_year
                capital, opex = capital + serving.capex, opex + serving.opex
            else:
                served = devices * HOURS * self._hourly(z)
                opex = opex + served
            total = total + served
            million = served / (demand * 3600 * HOURS * (g.prompt + g.output)) * 1e6
            draw = drawn_mw(devices, s, self.value("pue", z))
            watts = watts + draw
        return Costs(
            took, good, run, served, million, clusters, busy, meets, watts, capital, opex, total, training, serving,
            state, devices,
        )  # fmt: skip

    @property
    def held(self) -> int | None:
        """Whole clusters among the devices of a scenario that only serves and says how many it has."""
        if self.run is None and self.cluster and self.scenario.count is not None:
            return self.scenario.count // self.cluster.model.devices
        return None

    def serving_spares(self, devices: Any) -> Any:
        """Spare devices beside so many that serve."""
        rate, repair = RATE.p50, Faults().repair
        counts, back = np.unique(np.asarray(devices, float), return_inverse=True)
        found = np.array([spares(rate, int(n), repair) * NODE for n in counts], float)
        return found[back]

    def _hourly(self, z: Mapping[str, Numbers]) -> Numbers:
        assert self.rent
        return self.rent.at(z.get(self.rent.key, np.zeros(1)))

    @property
    def _mfu(self) -> str:
        return f"mfu.{self.scenario.device.name}"

    @property
    def _token(self) -> str:
        return f"decode.{self.scenario.device.name}"

    @property
    def _first(self) -> str:
        return f"first_token.{self.scenario.device.name}"


# key -> (key of the registry, label, least)
SURROUNDINGS = {
    "kwh": ("power.dollars_per_kwh", "price of power", 0.0),
    "pue": ("power.pue", "PUE", 1.0),
    "hall": ("power.hall_dollars_per_kw_month", "hall", 0.0),
    "network": ("network.dollars_per_device", "network", 0.0),
    "operation": ("operation.share_of_capex_per_year", "operation, share of capex", 0.0),
    "years": ("operation.amortisation_years", "amortisation", 0.0),
}


def case(scenario: Scenario, prices: Prices) -> Case:
    """Look everything up: prices, the training layout, the serving cluster. Raises PlanError naming the scenario."""
    with naming(scenario.where):
        return _case(scenario, prices)


def _case(s: Scenario, prices: Prices) -> Case:
    run = training_run(s.training, s.device, s.count) if s.training and s.count else None
    cluster = serving_cluster(s.serving, s.device) if s.serving else None
    if run is None and cluster and s.count is not None and s.count < cluster.model.devices:
        raise PlanError(f"count = {s.count}: one cluster takes {cluster.model.devices} devices; give at least that")
    inputs: list[Input] = []
    buys = s.mode == "buy"

    def price(key: str, label: str, registry: str, least: float = 0.0) -> Input:
        unit = UNITS.get(registry, UNITS.get(registry.partition(".")[0], ""))
        if registry in s.money.given:
            return Input(key, label, unit, s.money.given[registry], "the file of scenarios", least)
        found = prices[registry]
        return Input(key, label, unit, found.interval, f"{found.source}, {found.date}", least)

    rent = _device_price(s, prices, "rent", "assumed_rent" if s.described else "rent", s.dollars_per_device_hour)
    purchase = _device_price(s, prices, "purchase", "purchase", s.dollars_per_device)
    if rent is None and not buys:
        raise PlanError(
            f"no rent for {s.device.label}; give dollars_per_device_hour, or [rent.{s.device.name}] in --prices"
        )
    if purchase is None and buys:
        raise PlanError(
            f"no price for {s.device.label}; give dollars_per_device, or [purchase.{s.device.name}] in --prices"
        )
    if purchase:
        inputs += [price(key, label, registry, least) for key, (registry, label, least) in SURROUNDINGS.items()]
    else:
        inputs.append(price("pue", "PUE", MONEY["pue"], 1.0))
    inputs.append(price("storage_bought", "storage bought", "storage.dollars_per_tb"))
    inputs.append(price("storage_rented", "storage rented", "storage.dollars_per_tb_month"))
    name = s.device.name
    if run:
        whole = "over the run" if run.whole else "while nothing fails"
        source = "given" if run.found is None else f"stack {run.given.stack}: spread of its residuals"
        inputs.append(Input(f"mfu.{name}", f"MFU {whole}, {name}", "share", run.mfu, source, most=1.0))
        rate = run.given.failures_per_device_hour or RATE
        if run.whole:
            rate = Interval(rate.p50, rate.p50, rate.p50)
        inputs.append(Input("failures", "failures per device-hour", "1/h", rate, "arXiv:2410.21680, arXiv:2407.21783"))
        inputs.append(Input("busy", "share of the year in use", "share", s.money.busy_share, "assumed", most=1.0))
    if cluster:
        engine = f"engine {cluster.given.engine}: spread of its residuals"
        for key, label, sigma in (
            (f"decode.{name}", f"decode time, {name}", cluster.sigma_token),
            (f"first_token.{name}", f"first-token time, {name}", cluster.sigma_first),
        ):
            inputs.append(Input(key, label, "of its median", Interval.around(1.0, sigma), engine))
        inputs.append(Input("demand", "requests", "1/s", cluster.given.requests_per_s, "given"))
    paid = purchase if buys else rent
    assert paid
    inputs.append(paid)
    return Case(s, run, cluster, {i.key: i for i in inputs}, rent, purchase)


def _device_price(s: Scenario, prices: Prices, key: str, table: str, given: Interval | None) -> Input | None:
    unit, label = UNITS[key], f"{'rent of' if key == 'rent' else 'price of'} {s.device.name}"
    # Scenarios that give different prices for one device still share their draw: dear times are dear for all.
    if given:
        return Input(f"{key}.{s.device.name}", label, unit, given, "the file of scenarios")
    found = prices.table.get(f"{table}.{s.device.name}")
    if found is None:
        return None
    return Input(f"{key}.{s.device.name}", label, unit, found.interval, f"{found.source}, {found.date}")
