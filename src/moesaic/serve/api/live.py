"""`/live` for the page and `/metrics` for Prometheus; the page itself."""

import json
from pathlib import Path

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from moesaic.serve.api.service import Service

PAGE = Path(__file__).parents[1] / "page"
PAGE_HEADERS = {
    # Nothing from elsewhere, nothing inline, in nobody's frame.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Page(StaticFiles):
    """Files of the page with headers that keep it to itself."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """A file; not found whatever else is asked of what is not there."""
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(404)
        response = await super().get_response(path, scope)
        response.headers.update(PAGE_HEADERS)
        return response


def routes(service: Service) -> APIRouter:
    """What watches the engine."""
    router, totals, engine = APIRouter(), service.totals, service.engine

    @router.get("/live")
    async def live(since: int = -1) -> Response:
        """Steps after number `since`, of the last 600, and what stands beside them."""
        found = {
            "model": service.description | {"name": service.name},
            "cap_s": engine.settings.max_token_latency_s,
            "price_per_hour": None if totals.price is None else totals.price.per_hour,
            "cost_per_1k": totals.per_1k(),
            "batches": engine.largest_batches(),
            "steps": [vars(record) for record in engine.records() if record.number > since],
            "totals": totals.for_page(),
        }
        return Response(json.dumps(found), headers={"Cache-Control": "no-store"}, media_type="application/json")

    @router.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        """Prometheus's text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
