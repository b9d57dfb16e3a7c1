"""`/v1/chat/completions` and `/v1/completions`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request, Response
from starlette.types import Send

from moesaic.serve.api.asking import Asking
from moesaic.serve.api.encode import Encoder
from moesaic.serve.api.errors import ApiError
from moesaic.serve.api.protocol import MOST_CHOICES, ChatRequest, CompletionRequest, Sampling
from moesaic.serve.api.replies import ChatShape, CompletionShape, Shape
from moesaic.serve.api.respond import Watched, send_stream, send_whole
from moesaic.serve.api.service import Service
from moesaic.serve.options import Options

Encode = Callable[[], Sequence[Sequence[int]]]


def routes(service: Service) -> APIRouter:
    """Both calls."""
    router = APIRouter()
    encoder, name, tokenizer = Encoder(service), service.name, service.engine.model.tokenizer

    def answer(
        request: Sampling, http: Request, encode: Encode, shape: Shape, most: int, logprobs: int | None
    ) -> Response:
        service.check_model(request.model)
        service.check_tokens(
            {"logit_bias": [int(t) for t in request.logit_bias], "stop_token_ids": request.stop_token_ids}
        )
        options = request.options(service.engine.model.stop_ids, most, logprobs)
        return Watched(partial(_answer, service, request, http.state.caller, encode, shape, options))

    kinds: dict[str, Any] = {"content": {"application/json": {}, "text/event-stream": {"schema": {"type": "string"}}}}

    @router.post("/v1/chat/completions", responses={200: kinds})
    async def chat(request: ChatRequest, http: Request) -> Response:
        """The answer to a conversation."""
        messages = [message.plain() for message in request.messages]
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        most = request.max_completion_tokens or request.max_tokens or service.engine.model.context
        shape = ChatShape(name, tokenizer, request.logprobs)
        return answer(request, http, lambda: [encoder.chat(messages)], shape, most, logprobs)

    @router.post("/v1/completions", responses={200: kinds})
    async def completions(request: CompletionRequest, http: Request) -> Response:
        """The continuation of texts."""
        prompts = request.prompts()
        if len(prompts) * request.n > MOST_CHOICES:
            raise ApiError(
                400, f"{len(prompts)} prompts with n = {request.n} are more than {MOST_CHOICES} answers; ask for fewer",
                param="n", code="invalid_value",
            )  # fmt: skip
        for prompt in prompts:
            if not isinstance(prompt, str):
                service.check_tokens({"prompt": prompt})
        shape = CompletionShape(name, tokenizer, request.logprobs is not None)
        return answer(
            request, http, lambda: [encoder.prompt(p) for p in prompts], shape, request.max_tokens, request.logprobs
        )

    return router


async def _answer(
    service: Service, request: Sampling, number: int, encode: Encode, shape: Shape, options: Options, send: Send
) -> None:
    with service.guard.slot(number):
        # In a thread, and left behind if the client goes: a long text takes seconds.
        prompts = await anyio.to_thread.run_sync(encode, abandon_on_cancel=True, limiter=service.encoding)
        with Asking(service, prompts, options, request.n, request.priority) as asking:
            if request.stream:
                usage = request.stream_options is not None and request.stream_options.include_usage
                await send_stream(asking, shape, usage, send)
            else:
                await send_whole(asking, shape, send)
