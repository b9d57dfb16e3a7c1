"""`moesaic serve`."""

import ipaddress
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from moesaic.commands.options import KernelsOption
from moesaic.commands.talk import ModelArg
from moesaic.errors import MoesaicError, ServeError

if TYPE_CHECKING:
    from moesaic.serve.api.guard import Rate
    from moesaic.serve.api.totals import Price
    from moesaic.serve.engine import Engine

BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
LIMITS = {"memory": "memory", "latency cap": "latency cap", "max_running": "no more run at once"}
PERIODS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def serve(
    model: ModelArg,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all networks.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    max_token_latency: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Time between two tokens to stay under, e.g. 50ms. The main knob."),
    ] = None,
    kv_memory: Annotated[str, typer.Option(metavar="SIZE", help="For keys and values, e.g. 512MB, 1GB, 2GiB.")] = "1GB",
    draft: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|lookup", help="A smaller model that guesses ahead, or the prompt itself."),
    ] = None,
    draft_length: Annotated[int, typer.Option(min=1, max=16, help="Guesses in a step, at most.")] = 4,
    kernels: KernelsOption = "auto",
    batch_invariant: Annotated[
        bool, typer.Option("--batch-invariant", help="Answers do not depend, to the bit, on what else is served.")
    ] = False,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keys that may ask, one a line. Default: everybody may.")
    ] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Requests at once of one key, or of all without keys.")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(metavar="N/TIME", help="Requests of one key, e.g. 60/min; all may come at once.")
    ] = None,
    max_body: Annotated[str, typer.Option(metavar="SIZE", help="Largest body of a request.")] = "4MiB",
    price: Annotated[
        str | None, typer.Option(metavar="N/h", help="Of this machine, e.g. 1.5/h, for the cost of tokens.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the model in the API. Default: the folder's or the run's.")
    ] = None,
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a line of JSON for each step.")] = None,
    drain: Annotated[str, typer.Option(metavar="TIME", help="After SIGTERM, for running answers to end.")] = "30s",
) -> None:
    """Serve a model: OpenAI's API, a chat page, metrics.

    Ctrl-C and SIGTERM let running answers end (--drain); a second one ends at once.
    """
    began = time.perf_counter()
    from moesaic.plan.quantity import parse_duration

    cap_s = None if max_token_latency is None else parse_duration(max_token_latency, "--max-token-latency")
    drain_s = parse_duration(drain, "--drain", zero=True)
    memory, body_limit = _bytes(kv_memory, "--kv-memory"), _bytes(max_body, "--max-body")
    try:
        from moesaic.serve.api.app import make_app, make_service
        from moesaic.serve.api.guard import Guard, read_keys
        from moesaic.serve.api.server import LAST_WORDS_S, Server, take_port
    except ModuleNotFoundError as error:
        raise ServeError(f"no {error.name} here; install the server with: pip install 'moesaic[serve]'") from error
    from contextlib import ExitStack

    from moesaic.serve.engine import Engine
    from moesaic.serve.local import load
    from moesaic.serve.settings import EngineSettings
    from moesaic.serve.trace import StepTrace

    keys = [] if api_key_file is None else read_keys(api_key_file)
    guard = Guard(keys, max_concurrent, None if rate is None else _rate(rate))
    cost = None if price is None else _price(price)
    with ExitStack() as stack:
        socket = stack.enter_context(take_port(host, port))
        steps = None if trace is None else stack.enter_context(StepTrace(trace))
        imported = time.perf_counter()
        opened = load(model)
        loaded = time.perf_counter()
        settings = EngineSettings(
            max_token_latency_s=cap_s, kv_memory=memory, draft=_draft(draft), draft_length=draft_length,
            kernels=kernels, batch_invariant=batch_invariant,
        )  # fmt: skip
        engine = Engine(opened, settings)
        engine.start()
        if steps is not None:
            engine.observers.append(steps)
        service = make_service(engine, name or _name(opened.folder), guard, cost, body_limit)
        times = [("imports", imported - began), ("weights", loaded - imported), *engine.timeline]
        address, bound = socket.getsockname()[:2]

        def ready() -> None:
            print(_facts(engine, service.name, [*times, ("in all", time.perf_counter() - began)]))
            shown = f"[{address}]" if ":" in address else address
            print(f"page       http://{shown}:{bound}/ (API under /v1, metrics at /metrics)", flush=True)
            if not keys and not ipaddress.ip_address(address).is_loopback:
                print(
                    f"warning: whoever reaches {shown}:{bound} can use this server; give --api-key-file",
                    file=sys.stderr, flush=True,
                )  # fmt: skip

        server = Server(make_app(service), service, drain_s, ready)
        try:
            server.run(sockets=[socket])
        except OSError as error:
            raise ServeError(f"{host}:{port}: {error.strerror or error}; choose another --port (or --host)") from error
        closing = threading.Thread(target=engine.close, daemon=True)
        if not server.force_exit:
            closing.start()
            closing.join(LAST_WORDS_S)
    if server.force_exit or closing.is_alive():  # a step that does not end must not keep the process
        sys.stdout.flush()
        os._exit(0)


def _facts(engine: "Engine", name: str, times: list[tuple[str, float]]) -> str:
    """What is served and how, in a few lines."""
    from moesaic.plan.quantity import human, human_time

    about = engine.description
    contexts = {(batch, why): context for context, batch, why in engine.largest_batches()}  # the longest of each
    limited: dict[str, list[str]] = {}
    for (batch, why), context in contexts.items():
        limited.setdefault(LIMITS[why], []).append(f"{batch} of {context:,}")
    batches = "; ".join(f"{', '.join(found)} tokens ({why})" for why, found in limited.items())
    cap = engine.settings.max_token_latency_s
    rows = [
        ("model", f"{name}: {human(about['parameters'])} parameters in {about['dtype']}, context {about['context']:,}"),
        ("kernels", about["kernels"]),
        ("memory", f"{about['kv_tokens']:,} tokens of keys and values, {about['blocks']:,} blocks"),
        ("latency", "no cap (--max-token-latency)" if cap is None else f"at most {human_time(cap)} between tokens"),
        ("batch", f"at most so many answers at once: {batches}"),
        ("started", ", ".join(f"{what} {human_time(seconds)}" for what, seconds in times)),
    ]
    return "\n".join(f"{title:<10} {text}" for title, text in rows)


def _name(folder: Path) -> str:
    """Of a run for its model folder, else of the folder."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def _draft(text: str | None) -> Path | Literal["lookup"] | None:
    return "lookup" if text == "lookup" else None if text is None else Path(text)


def _bytes(text: str, option: str) -> int:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([A-Za-z]+)", text.strip())
    if found is None or found[2] not in BYTES or (size := int(float(found[1]) * BYTES[found[2]])) < 1:
        raise MoesaicError(f"{option} {text}: give a size with its unit, for example 512MB, 1GB or 2GiB")
    return size


def _price(text: str) -> "Price":
    from moesaic.serve.api.totals import Price

    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)/h", text.strip())
    if found is None:
        raise MoesaicError(f"--price {text}: give what an hour of this machine costs, for example 1.5/h")
    return Price(float(found[1]))


def _rate(text: str) -> "Rate":
    from moesaic.serve.api.guard import Rate

    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)/(s|min|h)", text.strip())
    if found is None or float(found[1]) <= 0:
        raise MoesaicError(f"--rate {text}: give requests in a time, for example 10/s or 60/min")
    return Rate(float(found[1]), PERIODS[found[2]])
