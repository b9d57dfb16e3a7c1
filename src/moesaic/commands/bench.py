"""`moesaic bench ...`: how fast it answers, in the words of vLLM's benchmarks."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from moesaic.commands.options import JsonOption, KernelsOption
from moesaic.commands.progress import progress_on_stderr
from moesaic.errors import ServeError

bench_app = typer.Typer(
    help="Measure a server, the engine, or a start.",
    epilog="Example: moesaic bench latency runs/pocket/model",
    no_args_is_help=True,
    rich_markup_mode=None,
)
ModelArg = Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder, a run folder or the name of a run.")]
TargetArg = Annotated[
    str, typer.Argument(metavar="URL|MODEL", help="A server's address without /v1, or a model to serve for the while.")
]
ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="Model to ask for; default: the first that is listed.")
]
TokenizerOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Draw prompts from its whole vocabulary; default: ids 300-999, which all models have."
    ),
]
PromptsOption = Annotated[int, typer.Option("--num-prompts", min=1, help="Requests in all.")]
RateOption = Annotated[float, typer.Option("--request-rate", help="Requests a second; inf sends all at once.")]
BurstOption = Annotated[
    float, typer.Option(help="Shape of the gaps between requests: 1 is Poisson, below 1 comes in bursts.")
]
ConcurrencyOption = Annotated[
    int | None, typer.Option("--max-concurrency", min=1, help="Never more requests under way.")
]
InputOption = Annotated[int, typer.Option("--random-input-len", min=1, help="Tokens of a prompt, prefix not counted.")]
OutputOption = Annotated[int, typer.Option("--random-output-len", min=1, help="Tokens of an answer.")]
RangeOption = Annotated[
    float, typer.Option("--random-range-ratio", help="Lengths vary by this share both ways, evenly.")
]
PrefixOption = Annotated[
    int, typer.Option("--random-prefix-len", min=0, help="Tokens that all prompts begin with: for prefix caches.")
]
EosOption = Annotated[
    bool, typer.Option("--ignore-eos", help="Ask for answers of the full length (an extension of vLLM's).")
]
TemperatureOption = Annotated[float, typer.Option(min=0, help="Of the requests; 0 is greedy.")]
KeyOption = Annotated[str | None, typer.Option("--api-key", envvar="OPENAI_API_KEY", help="Sent as bearer token.")]
SeedOption = Annotated[int, typer.Option(help="Of prompts and arrivals.")]
GoodputOption = Annotated[
    list[str] | None,
    typer.Option(metavar="M:MS", help="Objective such as ttft:500; may be repeated. Of ttft, tpot, e2el."),
]
MetricsOption = Annotated[
    str, typer.Option("--percentile-metrics", metavar="M,M", help="Latencies to print: of ttft, tpot, itl, e2el.")
]
PercentsOption = Annotated[str, typer.Option("--metric-percentiles", metavar="P,P", help="Which percentiles.")]
InLenOption = Annotated[int, typer.Option("--input-len", min=1, help="Tokens of each prompt.")]
OutLenOption = Annotated[int, typer.Option("--output-len", min=1, help="Tokens of each answer.")]
BatchOption = Annotated[
    list[int] | None, typer.Option("--batch-size", min=1, help="Requests at once; may be repeated. Default: 1.")
]
WarmupOption = Annotated[int, typer.Option("--num-iters-warmup", min=0, help="Batches that are not counted.")]
ItersOption = Annotated[int, typer.Option("--num-iters", min=1, help="Batches that are.")]
ColdOption = Annotated[
    int, typer.Option("--num-iters-cold", min=0, help="Starts with the model's files dropped from memory.")
]
WarmOption = Annotated[int, typer.Option("--num-iters-warm", min=0, help="Starts with the files in memory.")]


@bench_app.command("serve", epilog="Example: moesaic bench serve http://127.0.0.1:8000 --request-rate 4")
def serve(
    target: TargetArg,
    model: ModelOption = None,
    tokenizer: TokenizerOption = None,
    num_prompts: PromptsOption = 64,
    request_rate: RateOption = math.inf,
    burstiness: BurstOption = 1.0,
    max_concurrency: ConcurrencyOption = None,
    input_len: InputOption = 256,
    output_len: OutputOption = 128,
    range_ratio: RangeOption = 0.0,
    prefix_len: PrefixOption = 0,
    ignore_eos: EosOption = False,
    temperature: TemperatureOption = 0.0,
    api_key: KeyOption = None,
    seed: SeedOption = 0,
    goodput: GoodputOption = None,
    metrics: MetricsOption = "ttft,tpot,itl",
    percentiles: PercentsOption = "50,90,99",
    as_json: JsonOption = False,
) -> None:
    """Send load to an OpenAI-compatible server and time every piece of its answers.

    Requests go out at random times whether or not earlier ones are answered. Exits with 1 when one failed.
    """
    from moesaic.serve.latency import describe, parse_objectives, summary
    from moesaic.serve.load import arrivals, random_asks

    objectives = parse_objectives(goodput or ())
    shown, percents = _metrics(metrics), _percentiles(percentiles)
    lengths = {"ratio": range_ratio, "prefix_len": prefix_len}
    where = None if "://" in target else Path(target)
    ids = _ids(tokenizer or where)
    asks = random_asks(num_prompts, input_len, output_len, ids=ids, seed=seed, **lengths)  # type: ignore[arg-type]
    times = arrivals(num_prompts, request_rate, burstiness, seed)
    with progress_on_stderr() as progress:
        tell = progress("requests")
        asked = {"model": model, "temperature": temperature, "ignore_eos": ignore_eos, "api_key": api_key}
        if where is None:
            timings, seconds = _load(target, asked, asks, times, max_concurrency, tell)
        else:
            from moesaic.serve.own_server import own_server

            with own_server(where) as url:
                timings, seconds = _load(url, asked, asks, times, max_concurrency, tell)
    found = summary(timings, seconds, percents, objectives)
    print(json.dumps(found, indent=2) if as_json else describe(found, shown))
    raise typer.Exit(1 if found["failed"] else 0)


@bench_app.command("latency", epilog="Example: moesaic bench latency pocket --batch-size 1 --batch-size 16")
def latency(
    model: ModelArg,
    input_len: InLenOption = 128,
    output_len: OutLenOption = 128,
    batch_size: BatchOption = None,
    warmup: WarmupOption = 1,
    rounds: ItersOption = 5,
    kernels: KernelsOption = "auto",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Latency of the engine in this process: batches of random prompts, greedy, to their full length."""
    from moesaic.serve.engine import Engine
    from moesaic.serve.local import load
    from moesaic.serve.offline import describe, measure_latency
    from moesaic.serve.settings import EngineSettings

    sizes = batch_size or [1]
    opened = load(model)
    if input_len + output_len > opened.context:
        raise ServeError(
            f"--input-len {input_len} and --output-len {output_len}: the model's context holds {opened.context} tokens"
        )
    rows = []
    with (
        Engine(opened, EngineSettings(kernels=kernels, max_running=max(sizes))) as engine,
        progress_on_stderr() as progress,
    ):
        for batch in sizes:
            tell = progress(f"batches of {batch}")
            lengths = {"batch": batch, "input_len": input_len, "output_len": output_len}
            rows.append(measure_latency(engine, **lengths, warmup=warmup, rounds=rounds, seed=seed, progress=tell))
        about = engine.description
    if as_json:
        print(json.dumps({"engine": about, "batches": rows}, indent=2))
    else:
        print(f"{about['name']}, {about['dtype']}, kernels: {about['kernels']}\n{describe(rows)}")


@bench_app.command("startup", epilog="Example: moesaic bench startup pocket --num-iters-cold 3")
def startup(model: ModelArg, cold: ColdOption = 3, warm: WarmOption = 3, as_json: JsonOption = False) -> None:
    """Where the time of a start goes, from the new process to its first token; medians."""
    from moesaic.serve.local import find_model
    from moesaic.serve.startup import describe, measure_startup

    if not cold + warm:
        raise ServeError("--num-iters-cold 0 and --num-iters-warm 0 leave nothing to measure; raise one")
    folder, found = find_model(model), []
    with progress_on_stderr() as progress:
        for rounds, is_cold in ((cold, True), (warm, False)):
            if rounds:
                tell = progress("cold starts" if is_cold else "warm starts")
                found.append(measure_startup(folder, rounds, cold=is_cold, progress=tell))
    print(json.dumps(found, indent=2) if as_json else describe(found))


def _load(
    url: str,
    asked: dict[str, Any],
    asks: Sequence[Any],
    times: Sequence[float],
    max_concurrency: int | None,
    tell: Any,
) -> tuple[list[Any], float]:
    import asyncio

    from moesaic.serve.load import Target, first_model, run_load

    async def run() -> tuple[list[Any], float]:
        name = asked["model"] or await first_model(url, asked["api_key"])
        target = Target(url=url, **(asked | {"model": name}))
        return await run_load(target, asks, times, max_concurrency=max_concurrency, progress=tell)

    return asyncio.run(run())


def _ids(tokenizer: Path | None) -> tuple[int, int]:
    from moesaic.serve.load import SAFE_IDS

    if tokenizer is None:
        return SAFE_IDS
    from moesaic.data import Tokenizer
    from moesaic.serve.local import find_model

    return 0, len(Tokenizer.load(find_model(tokenizer)))


def _metrics(words: str) -> list[str]:
    from moesaic.serve.latency import METRICS

    chosen = [word.strip() for word in words.split(",")]
    if wrong := [word for word in chosen if word not in METRICS]:
        raise ServeError(f"--percentile-metrics {wrong[0]}: known are {', '.join(METRICS)}")
    return chosen


def _percentiles(words: str) -> list[float]:
    try:
        chosen = [float(word) for word in words.split(",")]
    except ValueError:
        chosen = [-1.0]
    if not all(0 <= p <= 100 for p in chosen):
        raise ServeError(f"--metric-percentiles {words}: give numbers from 0 to 100 with commas between them")
    return chosen
