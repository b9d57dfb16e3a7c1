"""Load on any server with OpenAI's completions: requests at stated times, answers streamed, every piece timed.

The load is open: a request is sent when its time has come, whether or not earlier ones are answered. (A client that
waits for answers hides that a server is too slow.) `max_concurrency` closes it for those who want that.
"""

import asyncio
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from moesaic.errors import ServeError
from moesaic.serve.latency import Timing

SAFE_IDS = (300, 1000)  # in every vocabulary, and no special tokens in most
CONNECT_S = 10.0


@dataclass(frozen=True)
class Ask:
    """A prompt as token ids, and how many tokens are wanted."""

    prompt: list[int]
    output: int


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where requests go, and what they say besides prompt and length."""

    url: str
    """Without /v1."""
    model: str
    temperature: float = 0.0
    ignore_eos: bool = False
    api_key: str | None = None


def arrivals(count: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """When requests are sent, seconds from the start: gaps are drawn from a gamma distribution with mean 1 / `rate`.

    `burstiness` is its shape: 1 is a Poisson process, below 1 requests come in bursts, above 1 they come evenly. An
    infinite rate sends all at 0. Raises ServeError.
    """
    if not rate > 0:
        raise ServeError(f"--request-rate {rate:g}: use requests a second above 0, or inf for all at once")
    if not 0 < burstiness < math.inf:
        raise ServeError(f"--burstiness {burstiness:g}: use a number above 0; 1 is Poisson")
    if math.isinf(rate):
        return [0.0] * count
    draw, now, times = random.Random(seed), 0.0, []
    for _ in range(count):
        times.append(now)
        now += draw.gammavariate(burstiness, 1 / (rate * burstiness))
    return times


def random_asks(
    count: int,
    input_len: int,
    output_len: int,
    *,
    ratio: float = 0.0,
    prefix_len: int = 0,
    ids: tuple[int, int] = SAFE_IDS,
    seed: int = 0,
) -> list[Ask]:
    """Prompts of random ids in [first, last). Lengths vary by `ratio` both ways; the first `prefix_len` ids are shared.

    Raises ServeError.
    """
    if count < 1 or input_len < 1 or output_len < 1 or prefix_len < 0:
        raise ServeError("numbers of prompts and lengths must be at least 1, the shared prefix at least 0")
    if not 0 <= ratio < 1:
        raise ServeError(f"--random-range-ratio {ratio:g}: use 0 (all lengths equal) or more, below 1")
    draw = random.Random(seed)

    def length(mean: int) -> int:
        return max(1, draw.randint(math.floor(mean * (1 - ratio)), math.ceil(mean * (1 + ratio))))

    prefix = [draw.randrange(*ids) for _ in range(prefix_len)]
    return [
        Ask([*prefix, *(draw.randrange(*ids) for _ in range(length(input_len)))], length(output_len))
        for _ in range(count)
    ]


async def run_load(
    target: Target,
    asks: Sequence[Ask],
    times: Sequence[float],
    *,
    max_concurrency: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Timing], float]:
    """Send each request at its time; what was seen of each, in their order, and the seconds from first to last.

    Failures are told in the timings. Raises ServeError when nothing listens there.
    """
    headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    gate = asyncio.Semaphore(max_concurrency or len(asks))
    async with httpx2.AsyncClient(
        base_url=target.url, headers=headers, limits=limits, timeout=httpx2.Timeout(None, connect=CONNECT_S)
    ) as client:
        await reachable(client)
        done, begin = 0, time.perf_counter()

        async def send(ask: Ask, at: float) -> Timing:
            nonlocal done
            await asyncio.sleep(begin + at - time.perf_counter())
            async with gate:
                timing = await _complete(client, target, ask)
            done += 1
            progress(done, len(asks))
            return timing

        timings = await asyncio.gather(*(send(ask, at) for ask, at in zip(asks, times, strict=True)))
    return timings, max(t.ended for t in timings) - min(t.sent for t in timings)


async def reachable(client: httpx2.AsyncClient) -> list[str]:
    """Names of the models there. Raises ServeError when no OpenAI-compatible server answers."""
    try:
        answer = await client.get("/v1/models", timeout=CONNECT_S)
        answer.raise_for_status()
        return [str(model["id"]) for model in answer.json()["data"]]
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise ServeError(
            f"{client.base_url}: no OpenAI-compatible server answers there ({error}); start one, or give its address "
            "without /v1"
        ) from error


async def first_model(url: str, api_key: str | None = None) -> str:
    """Name of the first model that a server lists. Raises ServeError."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    async with httpx2.AsyncClient(base_url=url, headers=headers) as client:
        names = await reachable(client)
    if not names:
        raise ServeError(f"{url} lists no model; name one with --model")
    return names[0]


async def _complete(client: httpx2.AsyncClient, target: Target, ask: Ask) -> Timing:
    body: dict[str, Any] = {
        "model": target.model,
        "prompt": ask.prompt,
        "max_tokens": ask.output,
        "temperature": target.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if target.ignore_eos:
        body["ignore_eos"] = True
    pieces: list[float] = []
    usage: dict[str, Any] = {}
    sent = time.perf_counter()
    error: str | None = None
    try:
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                await answer.aread()
                error = f"status {answer.status_code}: {answer.text[:300].strip()}"
            else:
                async for line in answer.aiter_lines():
                    now = time.perf_counter()
                    event = _event(line)
                    if event is None:
                        continue
                    if "error" in event:
                        error = str(event["error"])
                    if _says_something(event, first=not pieces):
                        pieces.append(now)
                    usage = event.get("usage") or usage
    except (httpx2.HTTPError, ValueError) as failure:
        error = f"{type(failure).__name__}: {failure}"
    ended = time.perf_counter()
    if error is None and not pieces:
        error = "the stream ended without a piece of an answer"
    return Timing(
        sent,
        tuple(pieces),
        ended,
        int(usage.get("prompt_tokens", len(ask.prompt))),
        int(usage.get("completion_tokens", len(pieces))),
        error,
    )


def _says_something(event: dict[str, Any], first: bool) -> bool:
    """Whether an event is a piece of the answer: not one that only tells why it ended."""
    choices = event.get("choices") or ()
    return any(first or choice.get("text") or choice.get("finish_reason") is None for choice in choices)


def _event(line: str) -> dict[str, Any] | None:
    """What a line of server-sent events carries. Raises ValueError for what is not JSON."""
    if not line.startswith("data:"):
        return None
    data = line[5:].strip()
    if data == "[DONE]":
        return None
    event = json.loads(data)
    if not isinstance(event, dict):
        raise ValueError(f"an event is not an object: {data[:100]}")
    return event
