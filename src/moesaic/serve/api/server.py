"""uvicorn around the application: a socket taken early, signals that drain, an end within a given time."""

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from moesaic.errors import ServeError
from moesaic.serve.api.service import Service

LAST_WORDS_S = 3  # for answers that were given up to be told so


def take_port(host: str, port: int) -> socket.socket:
    """A bound socket, before minutes go into loading a model. It does not listen yet. Raises ServeError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = min(found, key=lambda f: f[0] != socket.AF_INET)  # of localhost, IPv4
        taken = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ServeError(f"--host {host}: {error.strerror or error}; give an address of this machine") from error
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        taken.close()
        raise ServeError(f"{host}:{port}: {error.strerror or error}; choose another --port (or --host)") from error
    return taken


class Server(uvicorn.Server):
    """The first signal drains: new requests get 503, running ones end. The second ends at once."""

    def __init__(self, app: ASGIApp, service: Service, drain_s: float, ready: Callable[[], None]) -> None:
        """`ready` is called when connections are taken."""
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="off", ws="none", server_header=False,
            timeout_graceful_shutdown=LAST_WORDS_S,
        )  # fmt: skip
        super().__init__(config)
        self._service, self._drain_s, self._ready = service, drain_s, ready
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Raises OSError when the port was taken meanwhile."""
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Not handed on to uvicorn, which would end the process by the signal; a drained server ends with 0."""
        if self._service.draining or not self.started:
            self.should_exit = self.force_exit = True
        self._service.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if self._service.draining and self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return await super().on_tick(counter)

    async def _drain(self) -> None:
        end = time.monotonic() + self._drain_s
        engine = self._service.engine
        if answers := len(self._service.active):
            wait = f"at most {self._drain_s:g} s more; a second signal ends at once"
            with suppress(OSError):  # nobody reads it any more
                print(f"draining   answers that are being written: {answers}; {wait}", flush=True)
        while not (engine.drain(0) and not self._service.active) and time.monotonic() < end:
            await asyncio.sleep(0.05)
        for request in list(self._service.active):  # their readers are told, within the time for last words
            engine.cancel(request)
        self.should_exit = True
