"""`/v1/models`, `/tokenize` and `/detokenize`."""

import time
from typing import Any

import anyio.to_thread
from fastapi import APIRouter

from moesaic.errors import DataError
from moesaic.serve.api.errors import ApiError
from moesaic.serve.api.protocol import DetokenizeRequest, TokenizeRequest
from moesaic.serve.api.service import Service


def routes(service: Service) -> APIRouter:
    """What needs the tokenizer only."""
    router, tokenizer = APIRouter(), service.engine.model.tokenizer
    model = {
        "id": service.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "moesaic",
        "moesaic": {"context": service.engine.model.context},
    }

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model."""
        return {"object": "list", "data": [model]}

    @router.get("/v1/models/{name}")
    async def one(name: str) -> dict[str, Any]:
        """The model, by its name."""
        service.check_model(name)
        return model

    @router.post("/tokenize")
    async def tokenize(request: TokenizeRequest) -> dict[str, Any]:
        """Ids of a text, or of messages as the model would read them."""
        service.check_model(request.model)

        def encode() -> list[int]:
            if request.prompt is not None:
                return tokenizer.encode(request.prompt)
            try:
                return tokenizer.render_chat([message.plain() for message in request.messages or ()])
            except DataError as error:
                raise ApiError(400, str(error), param="messages", code="invalid_value") from error

        ids = await anyio.to_thread.run_sync(encode, limiter=service.encoding)
        return {"tokens": ids, "count": len(ids), "context": service.engine.model.context}

    @router.post("/detokenize")
    async def detokenize(request: DetokenizeRequest) -> dict[str, Any]:
        """Text of ids, control tokens visible; a broken character becomes U+FFFD."""
        service.check_model(request.model)
        service.check_tokens({"tokens": request.tokens})
        text = await anyio.to_thread.run_sync(
            lambda: tokenizer.decode(request.tokens, specials=True), limiter=service.encoding
        )
        return {"prompt": text}

    return router
