"""Whatever is sent, the answer is an error in OpenAI's shape with the right status, and nobody else notices."""

import json
import re
import socket
from typing import Any

import httpx2
import pytest

from serving import NAME, Serving, serving

CHAT: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
TEXT: dict[str, Any] = {"model": NAME, "prompt": "hello", "max_tokens": 3}


def refusal(reply: httpx2.Response, status: int) -> dict[str, Any]:
    """The error of a reply, whose shape is checked."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    body = reply.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return body["error"]


def still_answers(server: Serving) -> None:
    with server.client() as client:
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "malformed_body"),
        (b"", "malformed_body"),
        (b"null", "invalid_value"),
        (b"[]", "invalid_value"),
        (b'"text"', "invalid_value"),
        (b'{"model": "\xff\xfe"}', "malformed_body"),
        (b"[" * 100_000, "malformed_body"),
        (b'{"model": ' + b"9" * 10_000 + b"}", "malformed_body"),
        (json.dumps(CHAT).encode("utf-16"), None),
    ],
    ids=["cut", "empty", "null", "list", "text", "not UTF-8", "deep", "long number", "UTF-16"],
)
def test_bodies_that_are_no_json_object(server: Serving, body: bytes, code: str | None) -> None:
    with server.client() as client:
        reply = client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
        if code is None:  # JSON in another encoding is read, or refused; it does not fail
            assert reply.status_code in (200, 400)
        else:
            assert refusal(reply, 400)["code"] == code


def test_a_body_of_another_kind(server: Serving) -> None:
    with server.client() as client:
        reply = client.post("/v1/chat/completions", content=json.dumps(CHAT), headers={"Content-Type": "text/plain"})
        assert "Content-Type: application/json" in refusal(reply, 400)["message"]
        reply = client.post("/v1/chat/completions", data={"model": NAME})
        refusal(reply, 400)


FIELDS = [
    ({"model": None}, "model", "missing_field"),
    ({"model": 3}, "model", "invalid_value"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": "hello"}, "messages", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "missing_field"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "invalid_value"),
    ({"messages": [{"role": "user", "content": "x", "name": "me"}]}, "messages.0.name", "unknown_field"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, None, "invalid_value"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, None, "invalid_value"),
    ({"temperature": -1}, "temperature", "invalid_value"),
    ({"temperature": "warm"}, "temperature", "invalid_value"),
    ({"temperature": True}, "temperature", "invalid_value"),
    ({"temperature": float("nan")}, "temperature", "invalid_value"),
    ({"temperature": float("inf")}, "temperature", "invalid_value"),
    ({"top_p": 0}, "top_p", "invalid_value"),
    ({"top_p": 1.5}, "top_p", "invalid_value"),
    ({"top_k": -1}, "top_k", "invalid_value"),
    ({"top_k": 10**30}, "top_k", "invalid_value"),
    ({"min_p": 2}, "min_p", "invalid_value"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    ({"presence_penalty": 3}, "presence_penalty", "invalid_value"),
    ({"frequency_penalty": -3}, "frequency_penalty", "invalid_value"),
    ({"logit_bias": {"one": 1}}, None, "invalid_value"),
    ({"logit_bias": {"299999": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"3": 101}}, "logit_bias.3", "invalid_value"),
    ({"stop_token_ids": [300]}, "stop_token_ids", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": -5}, "max_tokens", "invalid_value"),
    ({"max_tokens": 2.5}, "max_tokens", "invalid_value"),
    ({"max_completion_tokens": 9}, None, "invalid_value"),  # and max_tokens is 3
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 1000}, "n", "invalid_value"),
    ({"seed": -1}, "seed", "invalid_value"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"stop": ""}, None, "invalid_value"),
    ({"stop": ["a"] * 17}, None, "invalid_value"),
    ({"stop": ["a" * 300]}, None, "invalid_value"),
    ({"top_logprobs": 3}, None, "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, None, "invalid_value"),
    ({"stream": True, "stream_options": {"other": 1}}, "stream_options.other", "unknown_field"),
    ({"leniency": 1}, "leniency", "invalid_value"),
    ({"leniency": 0.1, "require_exact": True}, None, "invalid_value"),
    ({"max_shift": 2}, "max_shift", "invalid_value"),
    ({"priority": 1000}, "priority", "invalid_value"),
    ({"temprature": 1}, "temprature", "unknown_field"),
    ({"x" * 100_000: 1}, "x" * 100, "unknown_field"),
    ({"tools": []}, "tools", "unsupported_field"),
    ({"tool_choice": "auto"}, "tool_choice", "unsupported_field"),
    ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_field"),
    ({"audio": {}}, "audio", "unsupported_field"),
    ({"modalities": ["text", "audio"]}, "modalities", "unsupported_field"),
    ({"user": "me"}, "user", "unsupported_field"),
    ({"store": True}, "store", "unsupported_field"),
]


@pytest.mark.parametrize(("change", "param", "code"), FIELDS, ids=lambda x: json.dumps(x)[:40] if x else "")
def test_fields_are_obeyed_or_refused_by_name(
    server: Serving, change: dict[str, Any], param: str | None, code: str
) -> None:
    body = {k: v for k, v in (CHAT | change).items() if v is not None}
    with server.client() as client:
        reply = client.post(
            "/v1/chat/completions", content=json.dumps(body), headers={"Content-Type": "application/json"}
        )
        error = refusal(reply, 400)
    assert error["code"] == code
    if param is not None:
        assert error["param"] == param
        assert param.rsplit(".", 1)[-1] in error["message"]
    assert len(error["message"]) <= 400


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"prompt": ""}, "invalid_value"),
        ({"prompt": []}, "invalid_value"),
        ({"prompt": [[]]}, "invalid_value"),
        ({"prompt": ["a", 3]}, "invalid_value"),
        ({"prompt": [300]}, "invalid_value"),
        ({"prompt": [-1]}, "invalid_value"),
        ({"prompt": [[5], [10**9]]}, "invalid_value"),
        ({"prompt": "hello " * 1000}, "context_length_exceeded"),
        ({"prompt": [5] * 256}, "context_length_exceeded"),
        ({"prompt": ["a"] * 40, "n": 2}, "invalid_value"),
        ({"best_of": 2}, "unsupported_field"),
        ({"echo": True}, "unsupported_field"),
        ({"suffix": "x"}, "unsupported_field"),
        ({"logprobs": 21}, "invalid_value"),
    ],
    ids=lambda x: json.dumps(x)[:40],
)
def test_prompts_of_completions(server: Serving, change: dict[str, Any], code: str) -> None:
    with server.client() as client:
        assert refusal(client.post("/v1/completions", json=TEXT | change), 400)["code"] == code


def test_null_and_neutral_values_ask_for_nothing(server: Serving) -> None:
    body = CHAT | {"seed": None, "stop": None, "tools": None, "n": None, "logit_bias": None, "stream_options": None}
    body |= {"tool_choice": "none", "response_format": {"type": "text"}, "store": False, "modalities": ["text"]}
    with server.client() as client:
        assert client.post("/v1/chat/completions", json=body).status_code == 200


def test_other_models_paths_and_methods(server: Serving) -> None:
    with server.client() as client:
        error = refusal(client.post("/v1/chat/completions", json=CHAT | {"model": "other"}), 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert refusal(client.get("/v1/nothing"), 404)["code"] == "not_found"
        reply = client.get("/v1/chat/completions")
        assert refusal(reply, 405)["code"] == "method_not_allowed"
        assert reply.headers["allow"] == "POST"
        refusal(client.get("/live?since=abc"), 400)
        refusal(client.post("/detokenize", json={"tokens": [300]}), 400)
        refusal(client.post("/tokenize", json={}), 400)


def test_other_origins_get_no_permission(server: Serving) -> None:
    with server.client() as client:
        asked = {"Origin": "http://elsewhere", "Access-Control-Request-Method": "POST"}
        assert client.options("/v1/chat/completions", headers=asked).status_code == 405
        reply = client.get("/v1/models", headers={"Origin": "http://elsewhere"})
        assert not [name for name in reply.headers if name.startswith("access-control")]


def test_bodies_that_are_too_large_are_refused_and_not_kept(server: Serving) -> None:
    body = json.dumps(CHAT | {"messages": [{"role": "user", "content": "x" * 10_000_000}]}).encode()
    headers = {"Content-Type": "application/json"}

    def pieces() -> Any:  # no length announced
        yield from (body[i : i + 65536] for i in range(0, len(body), 65536))

    with server.client() as client:
        for content in (body, pieces()):
            error = refusal(client.post("/v1/chat/completions", content=content, headers=headers), 413)
            assert error["code"] == "body_too_large"
            assert "4,194,304 bytes" in error["message"]
    still_answers(server)


def test_a_client_that_waits_for_leave_is_told_before_it_sends(server: Serving) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 10000000\r\nExpect: 100-continue\r\n\r\n"
        )
        assert raw.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_come_is_not_waited_for(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moesaic.serve.api.gate.BODY_S", 0.2)
    monkeypatch.setattr("moesaic.serve.api.gate.DISCARDED_S", 0.2)
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        received = b""
        while more := raw.recv(4096):  # up to the end of the connection
            received += more
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b'"code": "timeout"' in received


def test_the_largest_body_is_a_setting(served_model: Any) -> None:
    with serving(served_model, body_limit=1000) as small, small.client() as client:
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
        refusal(client.post("/v1/chat/completions", json=CHAT | {"stop": "x" * 1000}), 413)


def test_long_texts_within_the_limit_disturb_nobody(server: Serving) -> None:
    long = "hello there, how are you? " * 100_000
    with server.client() as client:
        reply = client.post("/v1/completions", json=TEXT | {"prompt": long})
        assert refusal(reply, 400)["code"] == "context_length_exceeded"
        reply = client.post("/v1/chat/completions", json=CHAT | {"messages": [{"role": "user", "content": long}]})
        assert refusal(reply, 400)["code"] == "context_length_exceeded"
    still_answers(server)


def test_a_full_queue_says_so(served_model: Any) -> None:
    from moesaic.serve.engine import EngineSettings

    with serving(served_model, EngineSettings(max_running=1, max_waiting=1)) as server, server.client() as client:
        server.steps.hold()
        reply = client.post("/v1/completions", json=TEXT | {"n": 5, "prompt": ["a"]})
        error = refusal(reply, 429)
        assert error["code"] == "overloaded"
        assert re.search("waiting, which is the limit.* should end in about [0-9]+ s", error["message"])
        assert int(reply.headers["retry-after"]) >= 1
        server.steps.release()
        still_answers(server)
