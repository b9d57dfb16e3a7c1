"""Days, dollars and energy of a run.

Every amount is a number, a NumPy array that broadcasts, or an `Interval`; the answer is of the widest kind among them.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesaic.errors import PlanError
from moesaic.plan.sheet import Interval

Amount: TypeAlias = "float | NDArray[np.float64] | Interval"

_DAY = 86_400.0


def product(*factors: Amount, per: tuple[Amount, ...] = ()) -> Any:
    """The product of `factors` divided by all of `per`.

    Intervals are taken as independent: distances from the median add in quadrature on a log scale, each side for
    itself, which is exact for log-normal ones. Only numbers go with intervals, no arrays.
    """
    if not any(isinstance(x, Interval) for x in (*factors, *per)):
        value: Any = 1.0
        for x in factors:
            value = value * x
        for x in per:
            value = value / x
        return value
    middle, below, above = 1.0, 0.0, 0.0
    for x, power in [*((x, 1) for x in factors), *((x, -1) for x in per)]:
        if not isinstance(x, Interval):
            middle *= float(x) ** power
            continue
        low, high = np.log(x.p50 / x.p10) ** 2, np.log(x.p90 / x.p50) ** 2
        middle *= x.p50**power
        below += low if power > 0 else high
        above += high if power > 0 else low
    return Interval(middle * float(np.exp(-np.sqrt(below))), middle, middle * float(np.exp(np.sqrt(above))))


def days(
    tokens: Amount, flop_per_token: Amount, devices: Amount, peak: Amount, mfu: Amount, goodput: Amount = 1.0
) -> Any:
    """Days of wall-clock time: tokens x FLOP per token / (devices x peak x MFU x goodput).

    `flop_per_token` is that of training (6 per active parameter, attention beside it), `peak` FLOP/s of a device,
    `mfu` the share of it that a step reaches while all is well, `goodput` the share of time that is work kept.
    Raises PlanError.
    """
    _positive(tokens=tokens, flop_per_token=flop_per_token, devices=devices, peak=peak)
    _share(mfu=mfu, goodput=goodput)
    return product(tokens, flop_per_token, per=(devices, peak, mfu, goodput, _DAY))


def implied_mfu(flop: Amount, devices: Amount, peak: Amount, days: Amount) -> Any:
    """The share of peak that a claim of `flop` in `days` on `devices` stands on, failures included.

    Above 1 the claim is false. Raises PlanError.
    """
    _positive(flop=flop, devices=devices, peak=peak, days=days)
    return product(flop, per=(devices, peak, days, _DAY))


def dollars(devices: Amount, days: Amount, price: Amount) -> Any:
    """Dollars for `devices` over `days` at `price` per device-hour. Raises PlanError.

    All devices that were asked for are paid, whether a layout uses them or not: every verb passes that number.
    """
    _positive(devices=devices, days=days, price=price)
    return product(24.0, devices, days, price)


def megawatts(devices: Amount, watts: float, host_watts: float, *, utilisation: float, pue: Amount) -> Any:
    """Average power in MW: devices x (device watts x utilisation + host watts) x PUE.

    `utilisation` is the share of its rated power that a device draws on average, `host_watts` the device's share of
    the node around it, `pue` what cooling and conversion add (1.1: ten percent). Raises PlanError.
    """
    _positive(devices=devices, watts=watts)
    _share(utilisation=utilisation)
    least, _ = _ends(pue)
    if not (host_watts >= 0 and least >= 1):
        raise PlanError(f"host watts {host_watts:g}, PUE {least:g}: watts are not negative and a PUE is at least 1")
    return product(devices, (watts * utilisation + host_watts) / 1e6, pue)


def energy_mwh(
    devices: Amount, days: Amount, watts: float, host_watts: float, *, utilisation: float, pue: float
) -> Any:
    """Energy in MWh: average power x 24 x days; the arguments are those of `megawatts`. Raises PlanError."""
    _positive(days=days)
    return product(megawatts(devices, watts, host_watts, utilisation=utilisation, pue=pue), 24.0, days)


def _ends(x: Amount) -> tuple[Any, Any]:
    return (x.p10, x.p90) if isinstance(x, Interval) else (np.min(x), np.max(x))


def _positive(**amounts: Amount) -> None:
    for name, x in amounts.items():
        low, high = _ends(x)
        if not (low > 0 and np.isfinite(high)):
            raise PlanError(f"{name.replace('_', ' ')} {low:g}: must be positive")


def _share(**amounts: Amount) -> None:
    for name, x in amounts.items():
        low, high = _ends(x)
        if not (low > 0 and high <= 1):
            wrong = high if high > 1 else low
            raise PlanError(f"{name} {wrong:g}: must be a share above 0 and at most 1 (100 %)")
