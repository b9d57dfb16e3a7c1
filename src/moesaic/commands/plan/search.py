"""`moesaic plan search`"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from moesaic.commands.options import JsonOption
from moesaic.commands.plan.params import SourceArg
from moesaic.commands.plan.show import ExplainOption, HtmlOption, show

if TYPE_CHECKING:
    from moesaic.plan.device import Device
    from moesaic.plan.sheet import Interval


def search(
    source: SourceArg,
    hardware: Annotated[
        str,
        typer.Option(
            "--hardware", metavar="DEVICE", help="a100-80, h100, ...; several generations: a100-80:16384,h100:8192."
        ),
    ],
    gpus: Annotated[
        str | None,
        typer.Option("--gpus", metavar="N", help="Devices: 24960, a list 8192,16384 or a range 24000:25200:120."),
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="TOKENS", help="Tokens to train on; default the recipe's.")
    ] = None,
    batch: Annotated[
        str | None, typer.Option(metavar="TOKENS", help="Global batch, a target; default the recipe's last, else 4M.")
    ] = None,
    seq_len: Annotated[
        str | None, typer.Option(metavar="TOKENS", help="Length of a sequence; default the recipe's, else the context.")
    ] = None,
    objective: Annotated[
        Literal["days", "cost", "mfu"], typer.Option("--objective", help="What to minimise, or MFU to maximise.")
    ] = "days",
    stack: Annotated[str, typer.Option("--stack", help="Training stack whose efficiencies hold.")] = "megatron-core",
    precision: Annotated[str, typer.Option("--precision", help="Of matrix products: bf16, fp16, fp8, ...")] = "bf16",
    gradient_bytes: Annotated[int, typer.Option(min=2, max=4, help="Bytes of a gradient: 4 is fp32, 2 bf16.")] = 4,
    imbalance: Annotated[float, typer.Option("--imbalance", help="Load of the busiest expert over the mean.")] = 1.0,
    top: Annotated[int, typer.Option(min=1, help="Layouts to list.")] = 10,
    max_tp: Annotated[
        int | None, typer.Option("--max-tp", min=1, help="Most tensor-parallel ranks; default the fast link's domain.")
    ] = None,
    max_cp: Annotated[
        int | None,
        typer.Option("--max-cp", min=1, help="Most context-parallel ranks; default a rank per 4,096 tokens."),
    ] = None,
    idle: Annotated[
        float | None,
        typer.Option("--idle", help="Share of devices that may stay unused; default 2 %, at least 7 devices."),
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price", help="Dollars per device-hour; default the market's, with its spread.")
    ] = None,
    prices_file: Annotated[
        Path | None, typer.Option("--prices", metavar="FILE", help="TOML with prices of your own.")
    ] = None,
    why_no_fsdp: Annotated[
        bool, typer.Option("--why-no-fsdp", help="Bytes that FSDP would gather in this pipeline, against ZeRO-1.")
    ] = False,
    as_json: JsonOption = False,
    explain: ExplainOption = False,
    html: HtmlOption = None,
) -> None:
    """Every layout of a cluster: the fastest, cheapest or best used, with days, dollars and the Pareto front."""
    from moesaic.errors import PlanError
    from moesaic.plan.mixed import parse_cluster
    from moesaic.plan.search_sheet import Question, search_sheet
    from moesaic.plan.space import Space
    from moesaic.plan.stack import stack as stack_of
    from moesaic.plan.workload import read_workload

    cluster = parse_cluster(hardware, gpus)
    shape, job, budget = read_workload(source, tokens, batch, seq_len, precision, gradient_bytes, imbalance)
    space, profile = Space(max_tp=max_tp, max_cp=max_cp, idle=idle), stack_of(stack)
    rents = [_rent(group.device, price, prices_file) for group in cluster.groups]
    if len(cluster.groups) > 1:
        from moesaic.plan.mixed_sheet import mixed_sheet

        if why_no_fsdp:
            raise PlanError("--why-no-fsdp speaks of one generation of devices; give --hardware DEVICE --gpus N")
        show(mixed_sheet(shape, job, profile, cluster.groups, budget, rents, space), as_json, explain, html)
        return
    group = cluster.groups[0]
    ask = Question(shape, job, group.device, profile, cluster.counts, budget, objective, top, rents[0], space)
    sheet, best = search_sheet(ask)
    if why_no_fsdp:
        from moesaic.plan.fsdp import add_why_no_fsdp

        add_why_no_fsdp(sheet, best)
    show(sheet, as_json, explain, html)


def _rent(device: "Device", price: float | None, path: Path | None) -> "Interval | float | None":
    """Dollars per device-hour: as given, from a file, the market's, or None where nobody quotes one."""
    from moesaic.errors import PlanError
    from moesaic.plan.prices import prices

    if price is not None:
        if not price > 0:
            raise PlanError(f"--price {price:g}: give dollars per device-hour, for example 1.5")
        return price
    table = prices(path)
    return table.rent(device.name).interval if f"rent.{device.name}" in table.table else None
