"""`moesaic plan train`"""

from typing import Annotated, Any, Literal

import typer

from moesaic.commands.options import JsonOption, SetOption
from moesaic.commands.plan.options import HardwareOption, PricesOption, SourceArg, StackOption, StacksOption
from moesaic.commands.plan.show import ExplainOption, HtmlOption, show


def degree(text: str) -> Any:
    """An option that takes a number from 1 on."""
    return typer.Option(min=1, metavar="N", help=text)


def train(
    source: SourceArg,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="Devices at hand.")],
    hardware: HardwareOption = "h100",
    tp: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tensor-parallel ranks; default the recipe's.")
    ] = None,
    pp: Annotated[int | None, typer.Option(min=1, metavar="N", help="Pipeline stages; default the recipe's.")] = None,
    cp: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Context-parallel ranks; default the recipe's.")
    ] = None,
    ep: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Expert-parallel ranks; default the recipe's.")
    ] = None,
    etp: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Tensor-parallel ranks of one expert: 1 or tp; default: faster."),
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Sequences of a micro-batch; default: fastest that fits.")
    ] = None,
    interleave: Annotated[
        int | None, typer.Option(min=1, metavar="V", help="Model chunks on a stage; default: fastest that fits.")
    ] = None,
    zero: Annotated[int | None, typer.Option(min=0, max=3, help="ZeRO stage: 0, 1 or 3; default the recipe's.")] = None,
    recompute: Annotated[
        Literal["none", "selective", "full"] | None, typer.Option(help="Recomputation; default: fastest that fits.")
    ] = None,
    gradients: Annotated[
        Literal["bf16", "fp32"] | None, typer.Option(help="Gradients kept in; default fp32 where they fit.")
    ] = None,
    zero_bubble: Annotated[
        bool, typer.Option("--zero-bubble", help="A zero-bubble schedule in place of 1F1B.")
    ] = False,
    seq_len: Annotated[str | None, typer.Option(metavar="TOKENS", help="Length of a sequence: 8k, 32768.")] = None,
    tokens: Annotated[str | None, typer.Option(metavar="TOKENS", help="Tokens of the run, with epochs: 13T.")] = None,
    batch: Annotated[str | None, typer.Option(metavar="TOKENS", help="Global batch in tokens: 60M.")] = None,
    precision: Annotated[str, typer.Option(help="Of matrix products: bf16, fp16, fp8, fp4.")] = "bf16",
    imbalance: Annotated[float, typer.Option(min=1, help="Load of the busiest expert over the mean.")] = 1.0,
    stack: StackOption = "megatron-core",
    stacks: StacksOption = None,
    price: Annotated[float | None, typer.Option(help="Dollars per device-hour; default the registry's range.")] = None,
    prices: PricesOption = None,
    optimality: Annotated[bool, typer.Option("--optimality", help="Is the number of tokens compute-optimal?")] = False,
    values: SetOption = None,
    as_json: JsonOption = False,
    explain: ExplainOption = False,
    html: HtmlOption = None,
) -> None:
    """Does it train on these devices, how fast, for how much?

    Memory, step time, utilisation, days, dollars and failures, each with its interval.

    What is not given is the recipe's, or the fastest choice that fits.
    """
    from moesaic.plan import train_plan

    sheet = train_plan(
        source, hardware, gpus, tp=tp, pp=pp, cp=cp, ep=ep, etp=etp, micro_batch=micro_batch, interleave=interleave,
        zero=zero, recompute=recompute, gradients=gradients, zero_bubble=zero_bubble, seq_len=seq_len, tokens=tokens,
        batch=batch, precision=precision, imbalance=imbalance, stack=stack, stacks=stacks, price=price, prices=prices,
        optimality=optimality, values=values or (),
    )  # fmt: skip
    show(sheet, as_json, explain, html)
