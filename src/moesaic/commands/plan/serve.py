"""`moesaic plan serve`."""

import re
from pathlib import Path
from typing import Annotated

import typer

from moesaic.commands.options import JsonOption
from moesaic.commands.plan.show import ExplainOption, HtmlOption, show
from moesaic.errors import PlanError


def serve(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A recipe, a shipped shape, or a folder with config.json.")
    ],
    hardware: Annotated[str, typer.Option(help="Device: a100-80, h100, ...")] = "a100-80",
    gpus: Annotated[int | None, typer.Option(help="Devices; a multiple of tp x pp x dp. Default: one replica.")] = None,
    tp: Annotated[int, typer.Option(help="Tensor-parallel ranks.")] = 8,
    pp: Annotated[int, typer.Option(help="Pipeline stages.")] = 1,
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
    price: Annotated[float | None, typer.Option(help="Dollars per device and hour.")] = None,
    price_file: Annotated[
        Path | None, typer.Option("--prices", metavar="FILE", help="Your prices (TOML) over the shipped ones.")
    ] = None,
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
    from moesaic.plan.device import device
    from moesaic.plan.prices import prices
    from moesaic.plan.serving.cost import Workload, rent
    from moesaic.plan.serving.profile import profile
    from moesaic.plan.serving.question import Question
    from moesaic.plan.serving.replica import replica
    from moesaic.plan.serving.report import serve_sheet
    from moesaic.plan.shapes import read_shape

    shape, hard = read_shape(source), device(hardware)
    model = replica(shape, hard, tp=tp, pp=pp, dp=dp, ep=ep, weights=weights, kv=kv)
    gpus = gpus or model.devices
    if gpus % model.devices:
        below = max(gpus // model.devices, 1) * model.devices
        raise PlanError(
            f"{gpus} devices are no multiple of tp {tp} x pp {pp} x dp {dp} = {model.devices}; "
            f"use {below} or {below + model.devices}"
        )
    length = _tokens(context) if context else shape.context
    prompt, output = _mix(mix)
    work = Workload(length * prompt / (prompt + output), length * output / (prompt + output))
    if chunk < 1:
        raise PlanError(f"chunk {chunk}: give at least 1 token, for example 1024")
    dollars, said = (price, "given") if price is not None else rent(hard, prices(price_file))
    question = Question(
        model, length, work, _batches(batch), dollars, said, gpus // model.devices, engine, chunk, first_layers,
        rate, target, disaggregate, drafts, accept, draft_cost, read_shape(against) if against else None, ratio,
    )  # fmt: skip
    show(serve_sheet(question, profile()), as_json, explain, html)


def _tokens(text: str) -> int:
    found = re.fullmatch(r"\s*([0-9][0-9_,]*)\s*([kK]?)\s*", text)
    value = int(found[1].replace("_", "").replace(",", "")) * (1024 if found[2] else 1) if found else 0
    if value < 2:
        raise PlanError(f"context {text}: give tokens, for example 8192, 8k or 32k")
    return value


def _mix(text: str) -> tuple[float, float]:
    found = re.fullmatch(r"\s*([0-9.]+)\s*:\s*([0-9.]+)\s*", text)
    try:
        prompt, output = (float(found[1]), float(found[2])) if found else (0.0, 0.0)
    except ValueError:
        prompt = output = 0.0
    if not (prompt > 0 and output > 0):
        raise PlanError(f"mix {text}: give prompt:output with both above 0, for example 8:1")
    return prompt, output


def _batches(text: str | None) -> list[int]:
    if text is None:
        return []
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise PlanError(f"batch {text}: give whole numbers from 1, for example 1,8,64")
    return found
