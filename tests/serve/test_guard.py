"""Keys, limits, and what is and is not open without a key."""

import hmac
from pathlib import Path

import pytest

from moesaic.errors import ServeError
from moesaic.serve.api.errors import ApiError
from moesaic.serve.api.guard import Guard, Rate, read_keys
from serving import NAME, serving


def test_each_key_is_compared_whole_and_all_are(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return real(a, b)

    monkeypatch.setattr("hmac.compare_digest", compare)
    guard = Guard(["first", "second", "a much longer third key"])
    assert [guard.caller(f"Bearer {key}") for key in ("first", "second", "a much longer third key")] == [0, 1, 2]
    assert len(compared) == 9  # whichever it is
    assert {len(side) for pair in compared for side in pair} == {32}
    compared.clear()
    with pytest.raises(ApiError):
        guard.caller("Bearer f")
    assert len(compared) == 3


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic right", "right", "Bearer \xff"]
)
def test_everything_else_is_refused(header: str | None) -> None:
    with pytest.raises(ApiError) as refused:
        Guard(["right"]).caller(header)
    assert refused.value.status_code == 401
    assert "right" not in str(refused.value.body)


def test_keys_are_kept_as_digests_only() -> None:
    assert "secret" not in repr(vars(Guard(["secret"])))


def test_a_bucket_empties_and_fills_again() -> None:
    now = 0.0
    guard = Guard(["a", "b"], rate=Rate(2, 60), clock=lambda: now)
    for _ in range(2):
        with guard.slot(0):
            pass
    with pytest.raises(ApiError, match="this key may start 2 requests in 60 s") as refused, guard.slot(0):
        pass
    assert refused.value.status_code == 429
    assert refused.value.headers == {"Retry-After": "30"}
    with guard.slot(1):  # another key has a bucket of its own
        pass
    now = 29.0
    with pytest.raises(ApiError), guard.slot(0):
        pass
    now = 30.0
    with guard.slot(0):
        pass


def test_slots_are_given_back_also_after_an_error() -> None:
    guard = Guard(max_concurrent=1)
    for _ in range(3):
        with pytest.raises(KeyError), guard.slot(0):
            raise KeyError
    with guard.slot(0), pytest.raises(ApiError, match="all callers together") as refused, guard.slot(0):
        pass
    assert refused.value.status_code == 429
    with guard.slot(0):
        pass


def test_a_file_of_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nfirst\n\n  second  \n")
    assert read_keys(file) == ["first", "second"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the keys in .*: No such file"),
        (b"\xff\xfe", "not UTF-8"),
        (b"# nothing\n\n", "has no keys"),
        (b"fine\nnot fine\n", "key 2 has a space"),
        ("schlüssel".encode(), "key 1 has a space or a character beyond ASCII"),
    ],
)
def test_a_file_that_holds_none(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ServeError, match=message) as refused:
        read_keys(file)
    assert "not fine" not in str(refused.value)  # keys are never shown, not even broken ones
    assert "\n" not in str(refused.value)


def test_what_is_open_without_a_key(served_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(served_model, guard=Guard(["right"], rate=Rate(1, 3600))) as server, server.client() as client:
        for path in ("/", "/health", "/ready", "/openapi.json"):
            assert client.get(path).status_code == 200
        for path in ("/v1/models", "/live", "/metrics", "/v1/nothing"):
            assert client.get(path).status_code == 401
        for path in ("/tokenize", "/detokenize", "/v1/completions"):
            reply = client.post(path, content=b"{")  # the key comes before the body
            assert reply.status_code == 401
            assert reply.headers["www-authenticate"] == "Bearer"
        for path, calls in server.app.openapi()["paths"].items():
            for method in calls:
                open_to_all = path in ("/health", "/ready")
                assert (client.request(method, path.format(name=NAME)).status_code == 200) == open_to_all, path
        with server.client("right") as known:
            assert known.get("/live").status_code == 200
            body = {"model": NAME, "prompt": "hello", "max_tokens": 2}
            assert known.post("/v1/completions", json=body).status_code == 200
            assert known.post("/v1/completions", json=body).status_code == 429
            assert known.get("/v1/models").status_code == 200  # the rate is of answers
    assert "right" not in caplog.text
