"""What a bought machine costs, and when buying beats renting. Every amount is a number or an array that broadcasts."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Amount: TypeAlias = "float | NDArray[np.float64]"

HOURS = 8760.0  # of a year
MONTHS = 12.0


def capex(
    devices: Amount, spare_share: Amount, device: Amount, network: Amount, storage_tb: Amount, per_tb: Amount
) -> Any:
    """Dollars up front: devices with their nodes and network, spares among them, and storage.

    `device` and `network` are dollars per device, `per_tb` dollars per TB.
    """
    return devices * (1 + spare_share) * (device + network) + storage_tb * per_tb


def amortisation(capital: Amount, years: Amount, residual_share: float = 0.0, interest: float = 0.0) -> Any:
    """Dollars a year: straight line down to `residual_share` of the capital, and interest on the mean value bound."""
    return capital * (1 - residual_share) / years + interest * capital * (1 + residual_share) / 2


@dataclass(frozen=True)
class Owned:
    """A bought machine. Dollars, a year where not `capex`."""

    capex: Any
    amortisation: Any
    energy: Any
    hall: Any
    operation: Any

    @property
    def opex(self) -> Any:
        """Dollars a year to run it."""
        return self.energy + self.hall + self.operation

    @property
    def per_year(self) -> Any:
        """All dollars a year, what was bought spread over its life."""
        return self.amortisation + self.opex


def energy_per_year(megawatts: Amount, per_kwh: Amount) -> Any:
    """Dollars a year for power drawn all the time."""
    return megawatts * 1e3 * HOURS * per_kwh


def hall_per_year(devices: Amount, watts: float, host_watts: float, per_kw_month: Amount) -> Any:
    """Dollars a year for room, cooling plant and supply: they are let by the kW that may be drawn, not by what is."""
    return devices * (watts + host_watts) / 1e3 * per_kw_month * MONTHS


def break_even_share(own_per_year: Amount, devices: Amount, rent: Amount) -> Any:
    """Share of the year from which on owning is cheaper than renting the hours used; above 1: never."""
    return own_per_year / (devices * HOURS * rent)


def break_even_months(capital: Amount, opex: Amount, devices: Amount, rent: Amount, busy: Amount) -> Any:
    """Months until the rent saved has paid for the machine; infinite where running it costs more than renting."""
    saved = devices * HOURS * rent * busy - opex
    with np.errstate(divide="ignore"):
        return np.where(saved > 0, MONTHS * capital / np.where(saved > 0, saved, 1.0), np.inf)
