"""`moesaic plan failures`"""

from typing import Annotated

import typer

from moesaic.commands.options import JsonOption
from moesaic.commands.plan.options import SourceArg
from moesaic.commands.plan.show import ExplainOption, HtmlOption, show


def failures(
    source: SourceArg,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="Devices that train.")],
    days: Annotated[float, typer.Option("--days", help="Days of wall-clock time.")] = 90,
    rate: Annotated[
        float | None, typer.Option("--rate", help="Failures per device-hour; without it that of Llama 3, 1.97e-5.")
    ] = None,
    storage: Annotated[
        float, typer.Option("--checkpoint-gb-s", help="GB/s that storage takes in all; Llama 3's sustained 2000.")
    ] = 2000,
    per_device: Annotated[
        float | None, typer.Option("--device-gb-s", help="GB/s to storage from one device; default 10.")
    ] = None,
    host_copy: Annotated[
        float | None,
        typer.Option("--async-gb-s", help="Save behind training, which waits only for this copy to host memory."),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", metavar="TIME", help="Time of a checkpoint, in place of size / GB/s.")
    ] = None,
    detect: Annotated[str, typer.Option("--detect", metavar="TIME", help="From a failure until it is noticed.")] = "0s",
    restart: Annotated[
        str, typer.Option("--restart", metavar="TIME", help="From there until training goes on: 180s, 10min, 0.5h.")
    ] = "600s",
    node: Annotated[int, typer.Option("--gpus-per-node", min=1, help="Devices that leave together.")] = 8,
    repair: Annotated[str, typer.Option("--repair", metavar="TIME", help="Until a broken node is back.")] = "24h",
    confidence: Annotated[
        float, typer.Option("--confidence", help="Probability that the spare nodes suffice at any moment.")
    ] = 0.99,
    slow_rate: Annotated[
        float, typer.Option("--straggler-rate", help="New slow devices per device-hour; 0 leaves them out.")
    ] = 0,
    slow_found: Annotated[
        str, typer.Option("--straggler-found", metavar="TIME", help="Until a slow device is found and taken out.")
    ] = "2h",
    slowdown: Annotated[
        float, typer.Option("--straggler-slowdown", help="How much longer a step takes meanwhile: 0.1 is 10 %.")
    ] = 0.1,
    price: Annotated[float | None, typer.Option("--price", help="Dollars per device-hour, for the money lost.")] = None,
    as_json: JsonOption = False,
    explain: ExplainOption = False,
    html: HtmlOption = None,
) -> None:
    """How often a run breaks, and how often to save.

    What share of the time is work that is kept, and how many spare nodes it needs.
    """
    from moesaic.plan import failures_plan
    from moesaic.plan.quantity import parse_duration

    given = {
        "rate": rate,
        "detect": parse_duration(detect, "--detect", zero=True),
        "restart": parse_duration(restart, "--restart", zero=True),
        "storage": storage * 1e9,
        "per_device": None if per_device is None else per_device * 1e9,
        "host_copy": None if host_copy is None else host_copy * 1e9,
        "checkpoint": None if checkpoint is None else parse_duration(checkpoint, "--checkpoint", zero=True),
        "slow_rate": slow_rate,
        "slow_found": parse_duration(slow_found, "--straggler-found", zero=True),
        "slowdown": slowdown,
        "node": node,
        "repair": parse_duration(repair, "--repair", zero=True),
        "confidence": confidence,
    }
    faults = {name: value for name, value in given.items() if value is not None}
    show(failures_plan(source, gpus, days, price=price, **faults), as_json, explain, html)
