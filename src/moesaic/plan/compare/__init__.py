"""Scenarios side by side: hardware, number, rent or buy; what training and serving cost, and what that hangs on.

`scenarios` reads the file; `training` and `demand` ask the planner; `money` knows what owning costs; `evaluate` prices
a scenario at any values of its uncertain inputs, which `uncertainty` draws; `choose` compares; `sheet` says it.
"""

from pathlib import Path

from moesaic.errors import PlanError
from moesaic.plan.compare.choose import choices, price_all
from moesaic.plan.compare.evaluate import case
from moesaic.plan.compare.scenarios import read_scenarios
from moesaic.plan.compare.sheet import comparison_sheet
from moesaic.plan.compare.uncertainty import SAMPLES, SEED
from moesaic.plan.prices import prices as read_prices
from moesaic.plan.sheet import Sheet


def compare_plan(
    file: Path | None = None,
    *,
    prices: Path | None = None,
    scenario: str | None = None,
    samples: int = SAMPLES,
    seed: int = SEED,
) -> Sheet:
    """The decision page of a file of scenarios (the shipped example without one).

    `prices`: a TOML file over the shipped prices; `scenario`: the one that is taken apart, by default the one that
    costs least a year. Raises PlanError.
    """
    if samples < 100:
        raise PlanError(f"--samples {samples}: give at least 100, for example {SAMPLES}")
    table = read_prices(prices)
    priced = price_all([case(s, table) for s in read_scenarios(file)], samples, seed)
    chosen = choices(priced)
    if scenario is None:
        shown = chosen[0].best if chosen else priced[0]
    else:
        named = [p for p in priced if p.name == scenario]
        if not named:
            raise PlanError(f'no scenario "{scenario}"; the file has: {", ".join(p.name for p in priced)}')
        shown = named[0]
    title = f"Comparison of {len(priced)} scenario{'s' * (len(priced) > 1)}"
    sheet = comparison_sheet(priced, chosen, shown, title)
    if file is None:
        sheet.notes.insert(0, "No file was given: these are the shipped scenarios of the described system "
                              "(`--example` prints their file, to change and to pass).")  # fmt: skip
    return sheet
