"""A call that is cut off after any number of turns of the event loop leaves no request and no task behind."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from moesaic.serve.api.app import make_app, make_service
from moesaic.serve.engine import Engine
from moesaic.serve.local import LocalModel
from serving import NAME, until

TURNS = (*range(24), 30, 40, 60, 100, 200)


async def call(app: Any, body: dict[str, Any], turns: int, hang_up: bool) -> None:
    """One call of the ASGI application; after so many turns the client goes, or the server cancels the task."""
    gone = asyncio.Event()
    content = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if content:
            return content.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        await asyncio.sleep(0)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/v1/completions", "raw_path": b"/v1/completions", "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json")], "client": ("x", 1), "server": ("x", 1),
    }  # fmt: skip
    task = asyncio.create_task(app(scope, receive, send))
    for _ in range(turns):
        await asyncio.sleep(0)
    if hang_up:
        gone.set()
    else:
        task.cancel()
    await asyncio.wait([task], timeout=60)
    assert task.done()
    assert task.cancelled() or task.exception() is None


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("hang_up", [True, False], ids=["the client goes", "the task is cancelled"])
def test_nothing_is_left(served_model: Path, stream: bool, hang_up: bool) -> None:
    with Engine(LocalModel(served_model)) as engine:
        service = make_service(engine, NAME)
        app = make_app(service)
        body = {"model": NAME, "prompt": "hello there", "n": 2, "ignore_eos": True, "stream": stream}

        async def every() -> None:
            for turns in TURNS:
                await call(app, body, turns, hang_up)
            assert len(asyncio.all_tasks()) == 1

        asyncio.run(every())
        assert not service.active
        assert service.guard._callers[0].running == 0
        assert service.totals.finishes["abort"] > 0  # some had been submitted
        until(lambda: engine.health().running + engine.health().waiting == 0, "an empty engine")
        engine.scheduler.check()
        assert engine.scheduler.pool.free == engine.scheduler.pool.size
        assert not engine._answers
