"""Requests made from the OpenAPI schema, valid and not: none fails, and what comes back is what the schema says."""

import copy

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serving import NAME, Serving, until

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
CALLS = {
    "/v1/chat/completions": "POST", "/v1/completions": "POST", "/v1/models": "GET", "/v1/models/{name}": "GET",
    "/tokenize": "POST", "/detokenize": "POST", "/live": "GET", "/metrics": "GET", "/health": "GET", "/ready": "GET",
}  # fmt: skip


def schema(server: Serving) -> schemathesis.BaseSchema:
    """With limits that keep valid answers short, and the model that is here."""
    described = copy.deepcopy(server.app.openapi())
    for name, short in (("ChatRequest", "max_completion_tokens"), ("CompletionRequest", "max_tokens")):
        fields = described["components"]["schemas"][name]
        fields["properties"] |= {
            "model": {"const": NAME},
            short: {"type": "integer", "minimum": 1, "maximum": 3},
            "n": {"type": "integer", "minimum": 1, "maximum": 2},
            "logit_bias": {"type": "object", "maxProperties": 0},  # ids: most guesses are in no vocabulary
            "stop_token_ids": {"type": "array", "maxItems": 2, "items": {"type": "integer", "maximum": 299}},
        }
        fields["required"].append(short)
    return schemathesis.openapi.from_dict(described)


def test_the_schema_has_every_call(server: Serving) -> None:
    assert set(server.app.openapi()["paths"]) == set(CALLS)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "broken"])
@pytest.mark.parametrize("path", CALLS)
def test_no_request_fails(server: Serving, path: str, mode: GenerationMode) -> None:
    operation = schema(server)[path][CALLS[path]]
    if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
        return  # nothing of it can be broken
    statuses: set[int] = set()

    @settings(max_examples=15, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def each(data: st.DataObject) -> None:
        case = data.draw(operation.as_strategy(generation_mode=mode))
        response = case.call(base_url=server.address, timeout=60)
        statuses.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    each()
    until(server.idle, "an empty engine")
    if mode is GenerationMode.POSITIVE:
        # A guessed name is no model's, and a text of guessed tokens is in no vocabulary.
        assert 200 in statuses or path in ("/v1/models/{name}", "/v1/completions")
