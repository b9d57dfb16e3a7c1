"""`moesaic plan compare`"""

from pathlib import Path
from typing import Annotated

import typer

from moesaic.commands.options import JsonOption
from moesaic.commands.plan.options import PricesOption
from moesaic.commands.plan.show import ExplainOption, HtmlOption, show


def compare(
    file: Annotated[
        Path | None, typer.Argument(metavar="[SCENARIOS.TOML]", help="Scenarios; without it, the described system's.")
    ] = None,
    scenario: Annotated[
        str | None, typer.Option("--scenario", metavar="NAME", help="Take this one apart; default: the cheapest.")
    ] = None,
    prices: PricesOption = None,
    samples: Annotated[int, typer.Option(help="Draws of the uncertain inputs.")] = 4096,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 2023,
    example: Annotated[bool, typer.Option("--example", help="Print the shipped file of scenarios.")] = False,
    as_json: JsonOption = False,
    explain: ExplainOption = False,
    html: HtmlOption = None,
) -> None:
    """Scenarios side by side: rent or buy, and what decides."""
    if example:
        from moesaic.plan.compare.scenarios import example_text

        print(example_text(), end="")
        return
    from moesaic.plan.compare import compare_plan

    show(compare_plan(file, prices=prices, scenario=scenario, samples=samples, seed=seed), as_json, explain, html)
