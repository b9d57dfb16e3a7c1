"""A client that goes, at whatever moment, leaves nothing behind; one that reads slowly holds up nobody."""

import json
import socket
import time
from contextlib import suppress
from typing import Any

import pytest

from serving import NAME, WAIT_S, Serving, until

ENDLESS: dict[str, Any] = {"model": NAME, "prompt": "hello there", "ignore_eos": True, "temperature": 1.0}


class Raw:
    """A connection on which bytes can be sent and left unread."""

    def __init__(self, server: Serving) -> None:
        host, port = server.address.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=WAIT_S)

    def ask(self, body: dict[str, Any], cut: int = 0, path: str = "/v1/completions") -> None:
        """Send a request, all but the last `cut` bytes of it."""
        content = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        )
        sent = head.encode() + b"\r\n" + content
        self.socket.sendall(sent[: len(sent) - cut])

    def hang_up(self) -> None:
        """Without a word."""
        self.socket.close()


def requests(server: Serving) -> int:
    """How many the engine has been given."""
    return server.engine._numbers


kinds = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@kinds
@pytest.mark.parametrize("cut", [1, 10_000], ids=["in the body", "in the head"])
def test_before_the_request_is_whole(server: Serving, stream: bool, cut: int) -> None:
    before = requests(server)
    raw = Raw(server)
    body = ENDLESS | {"stream": stream}
    raw.ask(body, min(cut, len(json.dumps(body)) + 20))
    raw.hang_up()
    still_works(server)
    assert requests(server) == before + 1  # the one that shows that it still works


@kinds
def test_while_its_text_is_turned_into_tokens(server: Serving, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    before, encode = requests(server), server.engine.model.tokenizer.encode
    entered = []

    def slow(text: str, **how: Any) -> list[int]:
        entered.append(text)
        time.sleep(0.3)
        return encode(text, **how)

    monkeypatch.setattr(server.engine.model.tokenizer, "encode", slow)
    raw = Raw(server)
    raw.ask(ENDLESS | {"stream": stream})
    until(lambda: bool(entered), "the text is being encoded")
    raw.hang_up()
    time.sleep(0.5)
    assert requests(server) == before
    assert server.service.guard._callers[0].running == 0
    monkeypatch.undo()
    still_works(server)


@kinds
def test_while_it_waits_behind_others(server: Serving, stream: bool) -> None:
    server.steps.hold()
    first, second = Raw(server), Raw(server)
    first.ask(ENDLESS)
    assert server.steps.waiting.wait(WAIT_S)
    second.ask(ENDLESS | {"stream": stream})
    until(lambda: server.engine.health().waiting == 1, "the second waits")
    second.hang_up()
    until(lambda: server.engine.health().waiting == 0, "the second is gone while no step ran")
    first.hang_up()
    server.steps.release()
    still_works(server)


@kinds
def test_in_the_middle_of_its_prompt(served_model: Any, stream: bool) -> None:
    from moesaic.serve.settings import EngineSettings
    from serving import serving

    with serving(served_model, EngineSettings(max_positions=16)) as server:
        server.steps.hold()
        raw = Raw(server)
        raw.ask(ENDLESS | {"prompt": [5] * 200, "stream": stream})
        server.steps.allow(3)
        until(lambda: server.steps.waiting.is_set(), "the fourth piece is on its way")
        [found] = server.engine.snapshot()["requests"]
        assert 0 < found["computed"] < 200
        raw.hang_up()
        until(lambda: not server.service.active, "the server has noticed")
        assert server.engine.scheduler.pool.free < server.engine.scheduler.pool.size  # the step may still write
        server.steps.release()
        until(server.idle, "and the engine too")


@kinds
@pytest.mark.parametrize("tokens", [1, 7])
def test_while_it_is_written(server: Serving, stream: bool, tokens: int) -> None:
    server.steps.hold()
    raw = Raw(server)
    raw.ask(ENDLESS | {"stream": stream})
    server.steps.allow(tokens)
    raw.hang_up()
    until(lambda: not server.service.active, "the server has noticed")
    server.steps.release()
    until(server.idle, "and the engine too")
    assert server.engine.scheduler.pool.free == server.engine.scheduler.pool.size


@kinds
def test_at_its_very_end(server: Serving, stream: bool) -> None:
    server.steps.hold()
    raw = Raw(server)
    raw.ask(ENDLESS | {"stream": stream, "max_tokens": 3})
    server.steps.allow(2)
    until(lambda: server.steps.waiting.is_set(), "the last step is on its way")
    raw.hang_up()
    server.steps.release()
    until(server.idle, "an end")
    assert server.engine.scheduler.pool.free == server.engine.scheduler.pool.size
    still_works(server)


def test_all_answers_of_a_call_are_given_up_together(server: Serving) -> None:
    server.steps.hold()
    raw = Raw(server)
    raw.ask(ENDLESS | {"n": 5, "stream": True})
    server.steps.allow(2)
    until(lambda: len(server.service.active) == 5, "all were submitted")
    raw.hang_up()
    until(lambda: not server.service.active, "none is left")
    server.steps.release()
    until(server.idle, "and none in the engine")
    assert server.engine.scheduler.pool.free == server.engine.scheduler.pool.size


def test_a_storm_of_clients_that_go(server: Serving) -> None:
    for i in range(60):
        raw = Raw(server)
        raw.ask(ENDLESS | {"stream": i % 2 == 0, "n": 1 + i % 3})
        if i % 4 == 0:
            raw.socket.settimeout(0.05)
            with suppress(TimeoutError):
                raw.socket.recv(100)
        raw.hang_up()
    until(server.idle, "an empty engine")
    assert server.service.guard._callers[0].running == 0
    still_works(server)


def test_a_reader_that_does_not_read_holds_up_nobody(server: Serving) -> None:
    slow = Raw(server)
    slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    slow.ask(ENDLESS | {"stream": True, "n": 8, "logprobs": 20})
    with server.client() as client:
        reply = client.post("/v1/completions", json=ENDLESS | {"max_tokens": 20}).json()
        assert reply["usage"]["completion_tokens"] == 20
    until(lambda: server.engine.health().running == 0, "the engine has ended the slow reader's answers")
    still_works(server)
    received = b""
    while b"[DONE]" not in received:  # and they are there when it reads
        received = received[-20:] + slow.socket.recv(65536)
    slow.hang_up()


def still_works(server: Serving) -> None:
    with server.client() as client:
        reply = client.post("/v1/completions", json=ENDLESS | {"max_tokens": 3})
        assert reply.json()["usage"]["completion_tokens"] == 3
