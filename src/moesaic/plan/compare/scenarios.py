"""A file of scenarios: what is to be trained and served, on which devices, rented or bought."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from moesaic.errors import PlanError
from moesaic.plan.choice import POWER_SHARE
from moesaic.plan.compare.fields import Fields
from moesaic.plan.device import Device, device
from moesaic.plan.layouts import RECOMPUTE
from moesaic.plan.sheet import Interval

LARGEST_SCENARIOS = 100


@dataclass(frozen=True)
class Training:
    """A run on `count` devices. None leaves the choice to the recipe or the planner; shares are of 1."""

    source: str
    tokens: float | None
    batch: float | None
    seq_len: int | None
    precision: str
    stack: str
    layout: Mapping[str, Any]  # fields of `plan.train.Wanted`
    imbalance: float
    run_mfu: Interval | None  # over the whole run, failures included: no layout is then looked for
    step_mfu: Interval | None  # while nothing fails
    failures_per_device_hour: Interval | None
    restart_s: float | None
    runs_per_year: float
    claimed_days: float | None  # a claim to hold against the plan


@dataclass(frozen=True)
class Serving:
    """What users ask of the served model. Rates are means; `peak_over_mean` is what clusters are sized for."""

    source: str
    requests_per_s: Interval
    prompt: int
    output: int
    ttft_s: float
    tpot_ms: float
    peak_over_mean: float
    weights: str
    kv: str | None
    engine: str
    chunk: int
    layout: tuple[tuple[str, int], ...]  # of tp, pp, dp, ep; empty: the planner's choice


MONEY = {  # key of [money] -> key of the registry of prices
    "dollars_per_kwh": "power.dollars_per_kwh",
    "pue": "power.pue",
    "hall_dollars_per_kw_month": "power.hall_dollars_per_kw_month",
    "network_dollars_per_device": "network.dollars_per_device",
    "storage_dollars_per_tb": "storage.dollars_per_tb",
    "storage_dollars_per_tb_month": "storage.dollars_per_tb_month",
    "operation_share_of_capex_per_year": "operation.share_of_capex_per_year",
    "amortisation_years": "operation.amortisation_years",
}


@dataclass(frozen=True)
class Money:
    """What surrounds the devices. `given` lies over the registry of prices, under its keys."""

    given: Mapping[str, Interval]
    busy_share: Interval  # of the year that a bought training machine works
    residual_share: float  # of capex that is left at the end
    interest_per_year: float  # on the average value that is bound
    draw_share: float  # of a device's rated power, on average
    storage_tb: float | None
    checkpoints_kept: int


@dataclass(frozen=True)
class Scenario:
    """One way to do it."""

    name: str
    device: Device
    count: int | None
    mode: Literal["rent", "buy"]
    described: bool  # rent at the described system's prices
    dollars_per_device_hour: Interval | None
    dollars_per_device: Interval | None
    training: Training | None
    serving: Serving | None
    money: Money

    @property
    def where(self) -> str:
        """How errors call it."""
        return f'scenario "{self.name}"'


def example_text() -> str:
    """The shipped file: the described system."""
    return files("moesaic.plan.compare").joinpath("example.toml").read_text(encoding="utf-8")


def read_scenarios(path: Path | None = None) -> list[Scenario]:
    """The scenarios of a TOML file, or of the shipped example. Raises PlanError that names scenario and field."""
    try:
        text = example_text() if path is None else path.read_text(encoding="utf-8")
        tree = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PlanError(f"{path}: not a readable file of scenarios: {reason}") from error
    return scenarios_of(tree, str(path) if path else "example.toml")


def scenarios_of(tree: Mapping[str, Any], where: str) -> list[Scenario]:
    """The scenarios of a parsed file. Tables `training`, `serving` and `money` at its top hold for all scenarios, a
    scenario's own tables change single keys, and `serving = false` leaves that part out. Raises PlanError."""
    top = Fields(tree, f"{where}: ")
    shared = {key: top.table(key) or {} for key in ("training", "serving", "money")}
    entries = top.tables("scenarios")
    top.done()
    if not entries:
        raise PlanError(f"{where}: no scenarios; write at least one [[scenarios]] table with name, hardware, mode")
    if len(entries) > LARGEST_SCENARIOS:
        raise PlanError(f"{where}: {len(entries)} scenarios; compare at most {LARGEST_SCENARIOS} at once")
    out = [_scenario(entry, shared, i) for i, entry in enumerate(entries, 1)]
    names = [s.name for s in out]
    for name in names:
        if names.count(name) > 1:
            raise PlanError(f'{where}: two scenarios are called "{name}"; give each a name of its own')
    return out


def _scenario(entry: Mapping[str, Any], shared: Mapping[str, Mapping[str, Any]], number: int) -> Scenario:
    name = Fields(entry, f"scenario {number}: ").text("name")
    if name is None:
        raise PlanError(f"scenario {number}: name is missing; give it one")
    where = f'scenario "{name}": '
    f = Fields(entry, where)
    f.text("name")
    hardware = f.text("hardware")
    if hardware is None:
        raise PlanError(f"{where}hardware is missing; give a device, for example h100")
    try:
        on = device(hardware)
    except PlanError as error:
        raise PlanError(f"{where}hardware: {error}") from error
    mode = f.text("mode", ("rent", "buy"))
    if mode is None:
        raise PlanError(f'{where}mode is missing; use "rent" or "buy"')
    count = f.whole("count")
    described = f.text("prices", ("market", "described")) == "described"
    hourly, each = f.amount("dollars_per_device_hour"), f.amount("dollars_per_device")
    parts = {key: None if f.refused(key) else {**shared[key], **(f.table(key) or {})} for key in shared}
    for key in shared:
        f.table(key)
    f.done()
    training = _training(parts["training"], f"{where}training.") if parts["training"] else None
    serving = _serving(parts["serving"], f"{where}serving.") if parts["serving"] else None
    if training is None and serving is None:
        raise PlanError(f"{where}neither training nor serving; give at least one of these tables")
    if training and count is None:
        raise PlanError(f"{where}count is missing; give the devices that train")
    money = _money(parts["money"] or {}, f"{where}money.")
    return Scenario(
        name, on, count, "rent" if mode == "rent" else "buy", described, hourly, each, training, serving, money
    )


def _training(table: Mapping[str, Any], where: str) -> Training:
    f = Fields(table, where)
    layout = {key: f.whole(key) for key in ("tp", "pp", "cp", "ep", "micro_batch", "interleave")}
    chosen: dict[str, Any] = {**layout, "zero": f.whole("zero", 0), "recompute": f.text("recompute", RECOMPUTE)}
    chosen["gradients"] = f.text("gradients", ("bf16", "fp32"))
    out = Training(
        source=f.text("source") or "gpt4",
        tokens=f.count("tokens"),
        batch=f.count("batch"),
        seq_len=f.context("seq_len"),
        precision=f.text("precision") or "bf16",
        stack=f.text("stack") or "megatron-core",
        layout={key: value for key, value in chosen.items() if value is not None},
        imbalance=f.number("imbalance", 1.0, zero=True) or 1.0,
        run_mfu=f.amount("run_mfu", most=1.0),
        step_mfu=f.amount("step_mfu", most=1.0),
        failures_per_device_hour=f.amount("failures_per_device_hour"),
        restart_s=f.duration("restart"),
        runs_per_year=f.number("runs_per_year") or 1.0,
        claimed_days=f.number("claimed_days"),
    )
    f.done()
    if out.run_mfu and out.step_mfu:
        raise PlanError(f"{where}run_mfu and step_mfu: give one; run_mfu counts failures, step_mfu does not")
    if (out.run_mfu or out.step_mfu) and out.layout:
        raise PlanError(f"{where}{next(iter(out.layout))}: a given MFU leaves no layout to choose; drop one of them")
    return out


def _serving(table: Mapping[str, Any], where: str) -> Serving:
    f = Fields(table, where)
    layout = tuple((key, value) for key in ("tp", "pp", "dp", "ep") if (value := f.whole(key)) is not None)
    demand = f.amount("requests_per_s")
    prompt, output = f.whole("prompt"), f.whole("output")
    first, token = f.number("ttft_s"), f.number("tpot_ms")
    source, weights, kv = f.text("source"), f.text("weights"), f.text("kv")
    engine, chunk, peak = f.text("engine"), f.whole("chunk"), f.number("peak_over_mean", 1.0, zero=True)
    f.done()
    if demand is None or prompt is None or output is None or first is None or token is None:
        needed = ("requests_per_s", "prompt", "output", "ttft_s", "tpot_ms")
        missing = next(key for key in needed if key not in table)
        raise PlanError(f"{where}{missing} is missing; give {', '.join(needed)}")
    return Serving(
        source or "gpt4", demand, prompt, output, first, token, peak or 1.5, weights or "bf16", kv, engine or "vllm",
        chunk or 1024, layout,
    )  # fmt: skip


BUSY = Interval(0.5, 0.8, 0.95)
"""Share of the year that a bought training machine works: about 0.8 in Meta's research clusters (arXiv:2410.21680),
the ends are our assumption."""


def _money(table: Mapping[str, Any], where: str) -> Money:
    f = Fields(table, where)
    given = {}
    for key, registry in MONEY.items():
        least = 1.0 if key == "pue" else 0.0
        if (value := f.amount(key, least, closed=key == "pue")) is not None:
            given[registry] = value
    out = Money(
        given,
        f.amount("busy_share", most=1.0) or BUSY,
        f.number("residual_share", 0.0, 0.9, zero=True) or 0.0,
        f.number("interest_per_year", 0.0, 1.0, zero=True) or 0.0,
        f.number("draw_share", most=1.0) or POWER_SHARE,
        f.number("storage_tb"),
        f.whole("checkpoints_kept") or 3,
    )
    f.done()
    return out
