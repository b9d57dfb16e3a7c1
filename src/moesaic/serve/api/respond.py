"""Sending an answer, in a stream or whole, for as long as somebody is there to read it."""

import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from moesaic.errors import MoesaicError
from moesaic.serve.api.asking import Asking, Choice
from moesaic.serve.api.errors import ApiError, refusal
from moesaic.serve.api.replies import Shape, usage


class Watched(Response):
    """A response that is given up when the client goes, streaming or not (Starlette does so for streams only).

    `answer` sends it; what it raises before it has sent anything becomes an error over HTTP.
    """

    def __init__(self, answer: Callable[[Send], Awaitable[None]]) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failed: Exception | None = None
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(watch)
            try:
                await self._answer(send)
            except Exception as error:  # kept, since a task group would wrap it
                failed = error
            group.cancel_scope.cancel()
        if isinstance(failed, MoesaicError):
            failed = refusal(failed)
        if isinstance(failed, ApiError):
            await failed.response()(scope, receive, send)
        elif failed is not None:
            raise failed


async def send_whole(asking: Asking, shape: Shape, send: Send) -> None:
    """One JSON object when all has been said."""
    async for _ in asking.pieces():
        pass
    body = shape.whole(asking.choices) | {"usage": usage(asking.choices)}
    response = Response(_json(body), media_type="application/json")
    await send({"type": "http.response.start", "status": 200, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body})


async def send_stream(asking: Asking, shape: Shape, include_usage: bool, send: Send) -> None:
    """Server-sent events. After the first byte an error is an event too, and the last one."""
    headers = Response(media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
    raw = [(name, value) for name, value in headers.raw_headers if name != b"content-length"]
    await send({"type": "http.response.start", "status": 200, "headers": raw})

    async def event(*chunks: dict[str, Any] | None) -> None:
        if body := b"".join(_event(more | chunk) for chunk in chunks if chunk):
            await send({"type": "http.response.body", "body": body, "more_body": True})

    more: dict[str, Any] = {"usage": None} if include_usage else {}
    try:
        await event(*map(shape.first, asking.choices))
        async for choice, piece in asking.pieces():
            await event(*_chunks(shape, choice, piece))
        if include_usage:
            await event(shape.tail() | {"usage": usage(asking.choices)})
    except ApiError as error:
        more = {}
        await event(error.body)
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


def _chunks(shape: Shape, choice: Choice, piece: Any) -> Iterable[dict[str, Any]]:
    if piece.tokens:
        yield shape.part(choice, piece)
    if piece.finish:
        yield shape.last(choice)


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + _json(chunk) + b"\n\n"


def _json(value: Any) -> bytes:
    """JSON in UTF-8; NaN would not be JSON, so it is a bug here."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
