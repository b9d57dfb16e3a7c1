"""`moesaic plan search`"""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from moesaic.commands.options import JsonOption, SetOption
from moesaic.commands.plan.options import PricesOption, SourceArg, StackOption, StacksOption
from moesaic.commands.plan.show import ExplainOption, HtmlOption, show


def search(
    source: SourceArg,
    hardware: Annotated[
        str,
        typer.Option("--hardware", metavar="DEVICE", help="a100-80; of several generations a100-80:16384,h100:8192."),
    ] = "h100",
    gpus: Annotated[
        str | None,
        typer.Option(
            "--gpus", metavar="N", help="Devices, unless --hardware counts them: 24960, 8192,16384 or 24000:25200:120."
        ),
    ] = None,
    objective: Annotated[
        Literal["days", "cost", "mfu"], typer.Option("--objective", help="Fewest days or dollars, or highest MFU.")
    ] = "days",
    seq_len: Annotated[str | None, typer.Option(metavar="TOKENS", help="Length of a sequence: 8k, 32768.")] = None,
    tokens: Annotated[str | None, typer.Option(metavar="TOKENS", help="Tokens of the run, with epochs: 13T.")] = None,
    batch: Annotated[
        str | None, typer.Option(metavar="TOKENS", help="Global batch, 60M: a target, of which whole shares are taken.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Layouts to list, of the best and of the front.")] = 10,
    max_tp: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Most tensor-parallel ranks; default the fast link's domain.")
    ] = None,
    max_cp: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Most context-parallel ranks; default one per 4,096 tokens.")
    ] = None,
    idle: Annotated[
        float | None, typer.Option("--idle", help="Share of devices that may stay unused; default 2 % or 7 devices.")
    ] = None,
    gradients: Annotated[Literal["bf16", "fp32"], typer.Option(help="Gradients kept in.")] = "fp32",
    precision: Annotated[str, typer.Option(help="Of matrix products: bf16, fp16, fp8, fp4.")] = "bf16",
    imbalance: Annotated[float, typer.Option(min=1, help="Load of the busiest expert over the mean.")] = 1.0,
    why_no_fsdp: Annotated[
        bool, typer.Option("--why-no-fsdp", help="Bytes that FSDP would gather in this pipeline, against ZeRO-1.")
    ] = False,
    stack: StackOption = "megatron-core",
    stacks: StacksOption = None,
    price: Annotated[float | None, typer.Option(help="Dollars per device-hour; default the registry's range.")] = None,
    prices: PricesOption = None,
    values: SetOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the best layout, for train --layout FILE.")
    ] = None,
    as_json: JsonOption = False,
    explain: ExplainOption = False,
    html: HtmlOption = None,
) -> None:
    """The fastest, cheapest or best used layout of a cluster.

    Every layout is priced: days, dollars, memory, and which of them no other beats in both MFU and memory.
    --gpus is required unless --hardware gives a number of each generation.
    """
    from moesaic.plan.search_api import search_plan

    sheet = search_plan(
        source, hardware, gpus, objective=objective, seq_len=seq_len, tokens=tokens, batch=batch, top=top,
        max_tp=max_tp, max_cp=max_cp, idle=idle, gradients=gradients, precision=precision, imbalance=imbalance,
        why_no_fsdp=why_no_fsdp, stack=stack, stacks=stacks, price=price, prices=prices, values=values or (),
    )  # fmt: skip
    notes: list[str] = []
    if out is not None:
        from moesaic.plan.layout_file import write_layout
        from moesaic.plan.quantity import parse_context

        length = parse_context(seq_len, "--seq-len") if seq_len else None
        notes = write_layout(sheet, out, source, values or (), length, gradients)
    show(sheet, as_json, explain, html)
    if out is not None:
        print(f"\nlayout: {out}", file=sys.stderr if as_json else sys.stdout)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
