"""Requests made from the OpenAPI schema, valid and not: none fails, and what comes back is what the schema says."""

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from serving import NAME, Serving, until

EXAMPLES = settings(
    max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
schema = schemathesis.pytest.from_fixture("api")


@pytest.fixture(scope="module")
def api(shared_server: Serving) -> object:
    """The schema, with limits that keep valid answers short, and the model that is here."""
    described = json.loads(json.dumps(shared_server.app.openapi()))
    for name, short in (("ChatRequest", "max_completion_tokens"), ("CompletionRequest", "max_tokens")):
        fields = described["components"]["schemas"][name]
        fields["properties"]["model"] = {"const": NAME}
        fields["properties"][short] = {"type": "integer", "minimum": 1, "maximum": 3}
        fields["properties"]["n"] = {"type": "integer", "minimum": 1, "maximum": 2}
        fields["required"] = [*fields["required"], short]
    return schemathesis.openapi.from_dict(described).config.base_url or schemathesis.openapi.from_dict(described)


@schema.parametrize()
@EXAMPLES
def test_no_request_fails(case: schemathesis.Case, server: Serving) -> None:
    response = case.call(base_url=server.address, timeout=20)
    assert response.status_code < 500, response.text
    case.validate_response(response, checks=[content_type_conformance, response_schema_conformance])
    until(server.idle, "an empty engine")
