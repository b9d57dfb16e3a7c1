"""Who may ask, and how much at once: API keys, requests in flight, requests in a time."""

import hashlib
import hmac
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from moesaic.errors import ServeError
from moesaic.serve.api.errors import BUSY, ApiError

SMOOTHING = 0.2  # weight of the last answer in the mean duration


@dataclass(frozen=True)
class Rate:
    """So many requests in so many seconds; all of them may come at once."""

    requests: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.requests:g} requests in {self.seconds:g} s"


@dataclass
class _Caller:
    running: int = 0
    tokens: float = math.inf  # of the bucket; full at first
    filled: float = 0.0


class Guard:
    """Keys and limits. Each key has limits of its own; without keys all callers share them."""

    def __init__(
        self,
        keys: Sequence[str] = (),
        max_concurrent: int | None = None,
        rate: Rate | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`keys` are kept as digests only."""
        self._digests = [_digest(key) for key in keys]
        self.max_concurrent, self.rate, self._clock = max_concurrent, rate, clock
        self._callers = [_Caller() for _ in self._digests or [b""]]
        self.mean_s = 1.0
        """That an answer takes, the last ones counting more."""

    @property
    def open(self) -> bool:
        """Whether anybody may ask."""
        return not self._digests

    def caller(self, authorization: str | None) -> int:
        """Number of the caller. Raises ApiError (401) for a key that is missing or unknown."""
        if self.open:
            return 0
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        found = -1
        for number, digest in enumerate(self._digests):  # all of them, each in constant time: nothing to be measured
            if hmac.compare_digest(digest, given):
                found = number
        if scheme.lower() != "bearer" or found < 0:
            message = "give one of this server's keys" if authorization is None else "this key is not known here"
            raise ApiError(
                401, f"{message}, as Authorization: Bearer KEY", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        return found

    @contextmanager
    def slot(self, number: int) -> Iterator[None]:
        """Room for a request of this caller. Raises ApiError (429) that says which limit and how long to wait."""
        caller = self._callers[number]
        who = "all callers together" if self.open else "this key"
        if self.max_concurrent is not None and caller.running >= self.max_concurrent:
            wait = self.mean_s / self.max_concurrent
            raise ApiError(
                429,
                f"{caller.running} requests of {who} are running, and {self.max_concurrent} may (--max-concurrent); "
                f"one should end in about {max(1, math.ceil(wait))} s",
                kind=BUSY, code="concurrency_limit_exceeded", retry_after=wait,
            )  # fmt: skip
        self._take(caller, who)
        caller.running += 1
        began = self._clock()
        try:
            yield
        finally:
            caller.running -= 1
            self.mean_s += SMOOTHING * (self._clock() - began - self.mean_s)

    def _take(self, caller: _Caller, who: str) -> None:
        if self.rate is None:
            return
        now, per_s = self._clock(), self.rate.requests / self.rate.seconds
        caller.tokens = min(max(1.0, self.rate.requests), caller.tokens + (now - caller.filled) * per_s)
        caller.filled = now
        if caller.tokens < 1:
            wait = (1 - caller.tokens) / per_s
            raise ApiError(
                429, f"{who} may start {self.rate} (--rate); the next is possible in {math.ceil(wait)} s",
                kind=BUSY, code="rate_limit_exceeded", retry_after=wait,
            )  # fmt: skip
        caller.tokens -= 1


def read_keys(path: Path) -> list[str]:
    """Keys of a file, one a line; empty lines and those that begin with # are not keys. Raises ServeError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ServeError(f"cannot read the keys in {path}: {reason}; give a text file with one key a line") from error
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise ServeError(f"{path} has no keys; write one a line, or leave --api-key-file out")
    if wrong := [number for number, key in enumerate(keys, 1) if not key.isascii() or " " in key]:
        raise ServeError(f"{path}: key {wrong[0]} has a space or a character beyond ASCII; no client can send it")
    return keys


def _digest(key: str) -> bytes:
    """Of one length, so that comparing tells nothing of the length of a key either."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
