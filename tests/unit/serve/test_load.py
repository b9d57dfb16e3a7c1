"""Arrivals follow the distribution that was asked for; the client times what a real HTTP server streams."""

import asyncio
import itertools
import json
import math
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from scipy import stats

from moesaic.errors import ServeError
from moesaic.serve.load import SAFE_IDS, Ask, Target, arrivals, first_model, random_asks, run_load

PIECES, GAP_S = 4, 0.02


def test_poisson_arrivals_have_exponential_gaps_and_the_rate() -> None:
    times = arrivals(20_000, rate=8.0, burstiness=1.0, seed=1)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert stats.kstest(gaps, stats.expon(scale=1 / 8.0).cdf).pvalue > 1e-4
    counts = [0] * int(times[-1])
    for at in times:
        if at < len(counts):
            counts[int(at)] += 1
    # The variance of a Poisson count is its mean: the index of dispersion is chi-squared.
    mean = sum(counts) / len(counts)
    dispersion = sum((c - mean) ** 2 for c in counts) / mean
    assert 1e-4 < stats.chi2(len(counts) - 1).cdf(dispersion) < 1 - 1e-4


@pytest.mark.parametrize("burstiness", [0.2, 5.0])
def test_burstiness_is_the_shape_of_the_gaps_and_keeps_the_rate(burstiness: float) -> None:
    times = arrivals(20_000, rate=4.0, burstiness=burstiness, seed=2)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    wanted = stats.gamma(burstiness, scale=1 / (4.0 * burstiness))
    assert stats.kstest(gaps, wanted.cdf).pvalue > 1e-4
    assert stats.kstest(gaps, stats.expon(scale=0.25).cdf).pvalue < 1e-4
    assert sum(gaps) / len(gaps) == pytest.approx(0.25, rel=0.1)


def test_an_infinite_rate_sends_all_at_once_and_a_seed_repeats() -> None:
    assert arrivals(3, math.inf, 1.0, 0) == [0.0] * 3
    assert arrivals(50, 2.0, 1.0, 7) == arrivals(50, 2.0, 1.0, 7) != arrivals(50, 2.0, 1.0, 8)
    assert arrivals(5, 2.0, 1.0, 7)[0] == 0.0


@pytest.mark.parametrize(
    ("rate", "burstiness"), [(0.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (1.0, 0.0), (1.0, math.inf)]
)
def test_impossible_arrivals_are_refused(rate: float, burstiness: float) -> None:
    with pytest.raises(ServeError, match=r"--request-rate|--burstiness"):
        arrivals(3, rate, burstiness, 0)


def test_random_prompts_have_the_lengths_and_share_the_prefix() -> None:
    asks = random_asks(300, 20, 10, ratio=0.5, prefix_len=6, seed=3)
    assert {len(a.prompt) for a in asks} == set(range(16, 37))
    assert {a.output for a in asks} == set(range(5, 16))
    assert len({tuple(a.prompt[:6]) for a in asks}) == 1
    assert len({tuple(a.prompt) for a in asks}) == 300
    assert all(SAFE_IDS[0] <= t < SAFE_IDS[1] for a in asks for t in a.prompt)
    assert {(len(a.prompt), a.output) for a in random_asks(9, 20, 10)} == {(20, 10)}


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"input_len": 0}, {"output_len": 0}, {"ratio": 1.0}, {"prefix_len": -1}]
)
def test_impossible_prompts_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ServeError):
        random_asks(**({"count": 1, "input_len": 1, "output_len": 1} | wrong))


class Completions(BaseHTTPRequestHandler):
    """Streams PIECES pieces of two tokens with GAP_S between them; refuses prompts that begin with 1, breaks at 2."""

    seen: list[dict[str, Any]]
    keys: list[str | None]
    busy = most = 0
    lock = threading.Lock()

    def do_GET(self) -> None:
        body = json.dumps({"data": [{"id": "little"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = type(self)
        with kind.lock:
            kind.seen.append(body)
            kind.keys.append(self.headers.get("Authorization"))
            kind.busy += 1
            kind.most = max(kind.most, kind.busy)
        try:
            self.answer(body)
        finally:
            with kind.lock:
                kind.busy -= 1

    def answer(self, body: dict[str, Any]) -> None:
        if body["prompt"][0] == 1:
            self.send_response(429)
            self.end_headers()
            self.wfile.write(b"come later")
            return
        self.send_response(200)
        self.end_headers()
        for _ in range(PIECES):
            time.sleep(GAP_S)
            self.say({"choices": [{"text": "so", "finish_reason": None}]})
            if body["prompt"][0] == 2:
                self.wfile.write(b"data: {not json\n\n")
                return
        self.say({"choices": [{"text": "", "finish_reason": "length"}]})
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 2 * PIECES}
        self.say({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def say(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def url() -> Iterator[str]:
    Completions.seen, Completions.keys, Completions.busy, Completions.most = [], [], 0, 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Completions)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_every_piece_is_timed_and_the_usage_counts_tokens(url: str) -> None:
    target = Target(url=url, model="little", api_key="secret", ignore_eos=True)
    told: list[tuple[int, int]] = []
    asks = [Ask([5, 6, 7], 8), Ask([6], 8)]
    timings, seconds = asyncio.run(run_load(target, asks, [0.0, 0.05], progress=lambda a, b: told.append((a, b))))
    for timing, ask in zip(timings, asks, strict=True):
        assert timing.error is None
        assert len(timing.pieces) == PIECES  # the one that only says why it ended does not count
        assert (timing.prompt_tokens, timing.output_tokens) == (len(ask.prompt), 2 * PIECES)
        assert timing.ttft is not None
        assert timing.ttft >= GAP_S
        assert min(timing.itl) > 0
        assert timing.sent < timing.pieces[0] < timing.pieces[-1] <= timing.ended
    assert timings[1].sent - timings[0].sent >= 0.04
    assert seconds >= 0.05 + PIECES * GAP_S
    assert told == [(1, 2), (2, 2)]
    assert Completions.keys == ["Bearer secret"] * 2
    assert Completions.seen[0] == {
        "model": "little",
        "prompt": [5, 6, 7],
        "max_tokens": 8,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }


def test_a_failed_request_is_told_and_disturbs_no_other(url: str) -> None:
    asks = [Ask([1], 8), Ask([9], 8), Ask([2], 8)]
    timings, _ = asyncio.run(run_load(Target(url=url, model="m"), asks, [0.0] * 3))
    assert timings[0].error == "status 429: come later"
    assert timings[1].error is None
    assert timings[2].error is not None
    assert "JSONDecodeError" in timings[2].error


def test_the_load_is_open_unless_concurrency_is_limited(url: str) -> None:
    asks = [Ask([i], 8) for i in range(10, 22)]
    asyncio.run(run_load(Target(url=url, model="m"), asks, [0.0] * 12))
    assert Completions.most > 2
    Completions.most = 0
    asyncio.run(run_load(Target(url=url, model="m"), asks, [0.0] * 12, max_concurrency=2))
    assert Completions.most == 2


def test_the_first_model_is_found_and_silence_is_an_error(url: str) -> None:
    assert asyncio.run(first_model(url)) == "little"
    with pytest.raises(ServeError, match="no OpenAI-compatible server answers there"):
        asyncio.run(first_model("http://127.0.0.1:9"))
    with pytest.raises(ServeError, match="no OpenAI-compatible server answers there"):
        asyncio.run(run_load(Target(url="http://127.0.0.1:9", model="m"), [Ask([5], 1)], [0.0]))
