"""`/health` and `/ready`: whether the engine lives, takes requests and gets on. Asked each time, never assumed."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import anyio
import anyio.to_thread
from fastapi import APIRouter, Response

from moesaic.serve.api.service import Service
from moesaic.serve.engine import Health

PATIENCE_S = 2.0  # an engine that does not tell its state within this is not well
DUMP_EVERY_S = 60.0


def routes(service: Service) -> APIRouter:
    """Open to everybody: nothing of a request is in it."""
    router = APIRouter()
    asking = anyio.CapacityLimiter(2)  # threads that an engine which hangs may keep
    dumped = -DUMP_EVERY_S

    async def ask(what: Callable[[], Any]) -> Any:
        """What the engine says, None when it does not in time."""
        with anyio.move_on_after(PATIENCE_S):
            return await anyio.to_thread.run_sync(what, abandon_on_cancel=True, limiter=asking)
        return None

    @router.get("/health", responses={503: {"description": "not alive, not ready, or stalled"}})
    async def health() -> Response:
        """200 only when the engine is alive, ready and progressing; else 503 with the reason."""
        nonlocal dumped
        state: Health | None = await ask(service.engine.health)
        if state is None:
            return _reply({"status": "stalled", "reason": f"the engine did not tell its state within {PATIENCE_S:g} s"})
        if state.alive and state.progressing:
            status = "ok" if state.ready and not service.draining else "draining"
            return _reply({"status": status, **asdict(state)})
        if (now := anyio.current_time()) - dumped >= DUMP_EVERY_S:
            dumped = now
            logging.getLogger("moesaic.serve").error(
                "%s; state of the scheduler: %s", state.reason, json.dumps(await ask(service.engine.snapshot))
            )
        return _reply({"status": "stalled" if state.alive else "dead", **asdict(state)})

    @router.get("/ready", responses={503: {"description": "takes no new requests"}})
    async def ready() -> Response:
        """200 when new requests are taken."""
        state: Health | None = await ask(service.engine.health)
        fine = state is not None and state.alive and state.ready and not service.draining
        return _reply({"status": "ok" if fine else "draining" if service.draining else "not ready"})

    return router


def _reply(body: dict[str, Any]) -> Response:
    status = 200 if body["status"] == "ok" else 503
    return Response(json.dumps(body), status, {"Cache-Control": "no-store"}, "application/json")
