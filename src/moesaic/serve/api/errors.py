"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}` and a status."""

import json
import logging
import math
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from moesaic.errors import MoesaicError

LONGEST = 400  # characters of a message: names of fields come from outside
INVALID, BUSY, OURS = "invalid_request_error", "rate_limit_error", "server_error"


class ErrorDetail(BaseModel):
    """What is wrong and what to change; `param` names the field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """Every answer that is not 2xx."""

    error: ErrorDetail


class ApiError(HTTPException):
    """A refusal with its status. `retry_after`: seconds after which another try may do better."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        headers = dict(headers or {})
        if retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
        super().__init__(status, message, headers)
        self.body = {"error": {"message": message[:LONGEST], "type": kind, "param": param, "code": code}}

    def response(self) -> Response:
        """As an answer over HTTP. ASCII only: what is wrong with a text must not be wrong with its refusal."""
        return Response(json.dumps(self.body), self.status_code, dict(self.headers or {}), "application/json")


def refusal(error: MoesaicError) -> ApiError:
    """The answer to a request that the engine or the model does not take."""
    return ApiError(400, str(error), code="invalid_value")


def draining() -> ApiError:
    """The answer to whoever comes after the server was told to end."""
    return ApiError(
        503, "this server is shutting down and takes no new requests; ask another, or try again when it is back",
        kind=OURS, code="draining", retry_after=5,
    )  # fmt: skip


def install(app: FastAPI) -> None:
    """Let everything that fails answer in this shape."""

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if not isinstance(error, ApiError):
            error = _of_status(request, error)
        return error.response()

    async def body(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _of_validation(error.errors()).response()

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, MoesaicError)
        return refusal(error).response()

    async def bug(request: Request, error: Exception) -> Response:
        logging.getLogger("moesaic.serve").error("%s %s failed", request.method, request.url.path)
        return ApiError(500, "the server failed at this request; its log says why", kind=OURS, code="bug").response()

    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, body)
    app.add_exception_handler(MoesaicError, ours)
    app.add_exception_handler(Exception, bug)


def _of_status(request: Request, error: HTTPException) -> ApiError:
    """Of an error that the framework found."""
    headers = dict(error.headers or {})
    if error.status_code == 404:
        message = f"there is nothing at {request.url.path}; /openapi.json lists what there is"
        return ApiError(404, message, code="not_found", headers=headers)
    if error.status_code == 405:
        allowed = headers.get("Allow") or headers.get("allow") or "another method"
        message = f"{request.url.path} does not take {request.method}; use {allowed}"
        return ApiError(405, message, code="method_not_allowed", headers=headers)
    if error.status_code == 400:
        return ApiError(400, "the body is not JSON in UTF-8", code="malformed_body", headers=headers)
    return ApiError(error.status_code, str(error.detail), headers=headers)


def _of_validation(found: Any) -> ApiError:
    first = found[0]
    if first["type"] == "json_invalid":
        at = first["loc"][-1]
        reason = first.get("ctx", {}).get("error", "")
        return ApiError(400, f"the body is not valid JSON: {reason} at character {at}", code="malformed_body")
    where = [str(part) for part in first["loc"][1:]]
    name = ".".join(where)
    if not where:
        if first["type"] == "missing" or isinstance(first.get("input"), bytes):
            return ApiError(
                400, "this needs a JSON object as its body, and the header Content-Type: application/json",
                code="malformed_body",
            )  # fmt: skip
        named = first.get("ctx", {}).get("field")
        return ApiError(400, _plain(first["msg"]), param=named, code="unsupported_field" if named else "invalid_value")
    if first["type"] == "extra_forbidden":
        message = f"{name[:100]}: there is no such field; /openapi.json lists those of this call"
        return ApiError(400, message, param=name[:100], code="unknown_field")
    if first["type"] == "missing":
        return ApiError(400, f"{name} is required", param=name, code="missing_field")
    return ApiError(400, f"{name}: {_plain(first['msg'])}", param=name, code="invalid_value")


def _plain(message: str) -> str:
    """Without what pydantic says before the words of our own checks."""
    return message.removeprefix("Value error, ")
