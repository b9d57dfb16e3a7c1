"""What every request passes before anything of it is read: its key, then the size of its body and the time it takes."""

from typing import Any

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moesaic.serve.api.errors import ApiError, draining
from moesaic.serve.api.service import Service

GUARDED = ("/tokenize", "/detokenize", "/live", "/metrics")  # and all under /v1/; the page and /health are open
GENERATE = ("/v1/chat/completions", "/v1/completions")
BODY_S = 60.0  # for a whole body to come
DISCARDED_S, DISCARDED = 10.0, 1 << 28  # of a body that is too large: most clients read no answer before it is sent


class Gate:
    """ASGI middleware. Bodies beyond the limit are thrown away as they come, never kept."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = scope["path"]
        guarded = path in GUARDED or path.startswith("/v1/")

        async def counted(message: Message) -> None:
            if guarded and message["type"] == "http.response.start" and message["status"] >= 400:
                self._service.metrics.refused(message["status"])
            await send(message)

        headers = Headers(scope=scope)
        body = _Body(receive, headers, self._service.body_limit)
        try:
            if guarded:
                caller = self._service.guard.caller(headers.get("authorization"))
                scope.setdefault("state", {})["caller"] = caller
            if self._service.draining and path in GENERATE:
                raise draining()
            if body.announced > body.limit:
                raise body.too_large()
            await self._app(scope, body.receive, counted)
        except ApiError as error:
            await body.discard()
            await error.response()(scope, receive, counted)


class _Body:
    """A request's body on its way in."""

    def __init__(self, receive: Receive, headers: Headers, limit: int) -> None:
        self._receive, self.limit = receive, limit
        length = headers.get("content-length", "0")
        self.announced = int(length) if length.isdecimal() else 0
        self._waits = "expect" in headers  # for our word before it is sent
        self._came = 0
        self._whole = False
        self._deadline: float | None = None

    async def receive(self) -> Message:
        """The next part; after the last one, what the server has to tell. Raises ApiError (408, 413)."""
        if self._whole:
            return await self._receive()
        now = anyio.current_time()
        self._deadline = self._deadline or now + BODY_S
        message: dict[str, Any] = {}
        with anyio.move_on_after(self._deadline - now):
            message = dict(await self._receive())
        if not message:
            raise ApiError(408, f"the body did not come within {BODY_S:.0f} s", code="timeout", headers=CLOSE)
        self._count(message)
        if self._came > self.limit:
            raise self.too_large()
        return message

    def too_large(self) -> ApiError:
        """The refusal of a body that is."""
        return ApiError(
            413, f"the body is larger than the {self.limit:,} bytes that this server reads; send less",
            code="body_too_large", headers=CLOSE,
        )  # fmt: skip

    async def discard(self) -> None:
        """Let the rest of a body come, and forget it."""
        with anyio.move_on_after(DISCARDED_S):
            while not (self._whole or self._waits) and self._came < DISCARDED:
                message = dict(await self._receive())
                if message["type"] == "http.disconnect":
                    return
                self._count(message)

    def _count(self, message: dict[str, Any]) -> None:
        self._came += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)


CLOSE = {"Connection": "close"}
