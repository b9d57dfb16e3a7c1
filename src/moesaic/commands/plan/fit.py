"""`moesaic plan fit`"""

from pathlib import Path
from typing import Annotated

import typer

from moesaic.commands.options import JsonOption
from moesaic.commands.plan.options import StacksOption
from moesaic.commands.plan.show import ExplainOption, HtmlOption, show


def fit(
    runs: Annotated[Path, typer.Argument(metavar="RUNS.csv", help="Your runs, a row each; docs/plan-fit.md.")],
    stack: Annotated[
        str, typer.Option("--stack", metavar="NAME", help="Profile to start from: megatron-core, fsdp, research, ...")
    ] = "megatron-core",
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="What the new profile is called.")] = "mine",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the profiles (TOML), for --stacks of other verbs."),
    ] = None,
    stacks: StacksOption = None,
    as_json: JsonOption = False,
    explain: ExplainOption = False,
    html: HtmlOption = None,
) -> None:
    """Calibrate a stack profile on your own runs.

    Their step times move its constants. Needs scipy: pip install 'moesaic[fit]'.
    """
    from moesaic.plan import fit_plan

    show(fit_plan(runs, stack=stack, name=name, out=out, stacks=stacks), as_json, explain, html)
