"""Dated, sourced prices from `prices.toml`, with a user's file laid over them."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from moesaic.errors import PlanError
from moesaic.plan.device import Device, device
from moesaic.plan.sheet import Interval

PER_DEVICE = ("rent", "assumed_rent", "purchase")  # tables whose keys are devices: $/h, $/h, $
# Units of the other tables' keys.
UNITS = {
    "rent": "$/device-hour",
    "assumed_rent": "$/device-hour",
    "purchase": "$/device",
    "power.dollars_per_kwh": "$/kWh",
    "power.pue": "",
    "power.hall_dollars_per_kw_month": "$/kW-month",
    "network.dollars_per_device": "$/device",
    "storage.dollars_per_tb": "$/TB",
    "storage.dollars_per_tb_month": "$/TB-month",
    "operation.share_of_capex_per_year": "1/year",
    "operation.amortisation_years": "years",
}


@dataclass(frozen=True)
class Price:
    """One price with its date and source. `low` and `high`: about the 10 % and 90 % quantiles of what is offered."""

    value: float
    low: float
    high: float
    date: str
    source: str

    @property
    def interval(self) -> Interval:
        """The price as p10, p50 and p90."""
        return Interval(self.low, self.value, self.high)

    @property
    def amount(self) -> Interval | float:
        """The same, or a plain number where nothing is uncertain."""
        return self.value if self.low == self.high else self.interval

    @property
    def said(self) -> str:
        """Where it is from and of when."""
        return f"{self.source}, {self.date}" if self.date else self.source


@dataclass(frozen=True)
class Prices:
    """All prices by `table.key`, for example `rent.h100` or `power.pue`."""

    table: Mapping[str, Price]

    def __getitem__(self, key: str) -> Price:
        """The price of `table.key`. Raises PlanError that names what a user's file would have to hold."""
        if key not in self.table:
            raise PlanError(f"no price '{key}'; give it in a prices file: [{key}] value = ..., date, source")
        return self.table[key]

    def purchase(self, name: str) -> Price:
        """$ of a device with its share of the node. Raises PlanError."""
        return self[f"purchase.{device(name).name}"]


def prices(path: Path | None = None) -> Prices:
    """The shipped prices, with those of a user's TOML in their place.

    The file has the tables of `prices.toml`; each entry needs `value` and may give `low`, `high` (default: the value),
    `date` and `source`. Raises PlanError for a file that cannot be read, an unknown key or a price without sense.
    """
    if path is None:
        return Prices(_shipped())
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PlanError(f"{path}: not a readable prices file: {error}") from error
    return Prices({**_shipped(), **_read(tree, str(path))})


def rent(device: Device, price: float | None, table: Prices) -> Price | None:
    """Dollars per device-hour: as given, else the range of the market, None where nobody quotes one. Raises PlanError.

    The one default of every verb. What the described system paid is in `assumed_rent`; give it as `--price`.
    """
    if price is not None:
        if not (price > 0 and math.isfinite(price)):
            raise PlanError(f"--price {price:g}: give dollars per device-hour, above 0")
        return Price(price, price, price, "", "given")
    return table.table.get(f"rent.{device.name}")


def no_rent(device: Device) -> str:
    """What to say where dollars are missing."""
    return f"No rent of {device.label} is known, so no dollars: give --price, or [rent.{device.name}] in --prices."


@cache
def _shipped() -> Mapping[str, Price]:
    text = files("moesaic.plan").joinpath("prices.toml").read_text(encoding="utf-8")
    return _read(tomllib.loads(text), "prices.toml")


def _read(tree: Mapping[str, Any], where: str) -> dict[str, Price]:
    out = {}
    for table, entries in tree.items():
        if not isinstance(entries, dict):
            raise PlanError(f"{where}: {table} is no table; write [rent.h100] and the like")
        for key, entry in entries.items():
            name = f"{table}.{device(key).name if table in PER_DEVICE else key}"
            if table not in PER_DEVICE and name not in UNITS:
                known = ", ".join(k if "." in k else f"{k}.DEVICE" for k in UNITS)
                raise PlanError(f"{where}: unknown key {name}; known: {known}")
            out[name] = _price(entry, f"{where}: {name}")
    return out


def _price(entry: Any, where: str) -> Price:
    if not isinstance(entry, dict):
        entry = {"value": entry}
    if unknown := set(entry) - {"value", "low", "high", "date", "source"}:
        raise PlanError(f"{where}: unknown key {sorted(unknown)[0]}; known: value, low, high, date, source")
    if "value" not in entry:
        raise PlanError(f"{where}: value is missing")
    numbers = [entry.get(key, entry["value"]) for key in ("low", "value", "high")]
    if not all(isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) for n in numbers):
        raise PlanError(f"{where}: low, value and high must be numbers")
    low, value, high = map(float, numbers)
    if not 0 < low <= value <= high:
        raise PlanError(f"{where}: 0 < low <= value <= high does not hold for {low:g}, {value:g}, {high:g}")
    return Price(value, low, high, str(entry.get("date", "undated")), str(entry.get("source", "the user's file")))
