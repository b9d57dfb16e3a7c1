"""The ASGI application over one engine."""

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI

from moesaic.serve.api import completions, errors, health, live, texts
from moesaic.serve.api.gate import Gate
from moesaic.serve.api.guard import Guard
from moesaic.serve.api.metrics import Metrics
from moesaic.serve.api.service import Service
from moesaic.serve.api.totals import Price, Totals
from moesaic.serve.engine import Engine

BODY_LIMIT = 4 << 20


def make_service(
    engine: Engine, name: str, guard: Guard | None = None, price: Price | None = None, body_limit: int = BODY_LIMIT
) -> Service:
    """What an application needs, with an engine that has been started."""
    totals = Totals(price)
    return Service(engine, name, guard or Guard(), totals, Metrics(engine, totals), body_limit)


def make_app(service: Service) -> FastAPI:
    """Its routes. Nothing answers other origins: there are no CORS headers."""
    failed: dict[int | str, dict[str, Any]] = {
        status: {"model": errors.ErrorReply, "description": "an error in OpenAI's shape"} for status in ("4XX", "5XX")
    }
    app = FastAPI(
        title="moesaic", version=version("moesaic"), docs_url=None, redoc_url=None, responses=failed,
        description="OpenAI-compatible completions of one local model.",
    )  # fmt: skip
    errors.install(app)
    app.add_middleware(Gate, service=service)
    for part in (completions, texts, health, live):
        app.include_router(part.routes(service))
    app.router.default = live.Page(directory=live.PAGE, html=True)  # after all else, so that wrong methods get 405
    return app
