"""`moesaic plan serve`."""

from typing import Annotated

import typer

from moesaic.commands.options import JsonOption
from moesaic.commands.plan.options import HardwareOption, PricesOption, SourceArg
from moesaic.commands.plan.show import ExplainOption, HtmlOption, show


def serve(
    source: SourceArg,
    hardware: HardwareOption = "h100",
    gpus: Annotated[int | None, typer.Option(help="Devices; a multiple of tp x pp x dp. Default: one replica.")] = None,
    tp: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tensor-parallel ranks; default: the smallest that fits.")
    ] = None,
    pp: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Pipeline stages; default: the smallest that fits.")
    ] = None,
    dp: Annotated[int, typer.Option(help="Attention copies that share one set of experts.")] = 1,
    ep: Annotated[int, typer.Option(help="Expert-parallel groups over the tp x dp ranks of a stage.")] = 1,
    context: Annotated[str | None, typer.Option(help="Tokens that must fit, 8k = 8192. Default: the model's.")] = None,
    mix: Annotated[str, typer.Option(help="Prompt to output tokens; together they fill the context.")] = "8:1",
    weights: Annotated[str, typer.Option(help="bf16, fp8, int8, nvfp4, mxfp4 or int4.")] = "bf16",
    kv: Annotated[
        str | None, typer.Option(help="bf16, fp8 or int8 cache. Default: as wide as the weights, 8 bit or more.")
    ] = None,
    batch: Annotated[str | None, typer.Option(help="Sequences of one micro-batch, for example 1,8,64.")] = None,
    engine: Annotated[str, typer.Option(help="Calibrated profile: vllm, sglang, trtllm or static.")] = "vllm",
    price: Annotated[float | None, typer.Option(help="Dollars per device-hour; default the registry's range.")] = None,
    prices: PricesOption = None,
    chunk: Annotated[int, typer.Option(help="Prompt tokens of one pass.")] = 1024,
    first_layers: Annotated[int | None, typer.Option(help="Layers of the first stage, 0 for embeddings alone.")] = None,
    rate: Annotated[
        float | None, typer.Option(help="Requests per second on each replica: latency at that load.")
    ] = None,
    target: Annotated[
        float | None, typer.Option(help="Dollars per 1k tokens: the batch that reaches it, of output alone and of all.")
    ] = None,
    disaggregate: Annotated[
        bool, typer.Option("--disaggregate", help="Prefill and decode on separate replicas.")
    ] = False,
    drafts: Annotated[int, typer.Option(help="Speculative tokens before each check; 0 for none.")] = 0,
    accept: Annotated[float, typer.Option(help="Share of drafts accepted.")] = 0.7,
    draft_cost: Annotated[float, typer.Option(help="A draft step as a share of a step of the model.")] = 0.02,
    against: Annotated[str | None, typer.Option(help="Another model, for example gpt3: split the cost ratio.")] = None,
    ratio: Annotated[float, typer.Option(help="The claimed cost ratio that --against splits.")] = 3.0,
    as_json: JsonOption = False,
    explain: ExplainOption = False,
    html: HtmlOption = None,
) -> None:
    """What serving costs, what fits, and how long a user waits.

    Stage balance, time per token, and dollars per 1k tokens against the batch.
    """
    from moesaic.plan.serving.ask import serve_plan

    sheet = serve_plan(
        source, hardware, gpus, tp=tp, pp=pp, dp=dp, ep=ep, context=context, mix=mix, weights=weights, kv=kv,
        batch=batch, engine=engine, price=price, prices=prices, chunk=chunk, first_layers=first_layers, rate=rate,
        target=target, disaggregate=disaggregate, drafts=drafts, accept=accept, draft_cost=draft_cost,
        against=against, ratio=ratio,
    )  # fmt: skip
    show(sheet, as_json, explain, html)
