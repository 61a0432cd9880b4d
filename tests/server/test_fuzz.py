"""Schemathesis against the OpenAPI schema of a real server: whatever it sends, nothing breaks."""

import os
import warnings
from itertools import count

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import CHECKS, load_all_checks

from tests.server.process import ServerProcess

load_all_checks()
NAMES = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
CHOSEN = [CHECKS.get_one(name) for name in NAMES]
OPERATIONS = [
    ("POST", "/v1/chat/completions"), ("POST", "/v1/responses"), ("POST", "/v1/completions"),
    ("POST", "/v1/moderations"), ("POST", "/v1/gate"), ("GET", "/v1/models"), ("GET", "/v1/models/{model}"),
    ("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/metrics"),
]  # fmt: skip
EXAMPLES = int(os.environ.get("ANYDEPTH_FUZZ", "40"))


@pytest.fixture(scope="module")
def schema(server: ServerProcess):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_breaks_the_server(schema, server, method, path):
    statuses: set[int] = set()
    turns = count()

    @settings(
        max_examples=EXAMPLES if method == "POST" else 5,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=schema[path][method].as_strategy())
    def fuzz(case) -> None:
        if isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "scripted"  # else nearly every request ends at a model that is not served
            if "messages" in case.body and next(turns) % 2:  # the other fields are tried as well
                case.body["messages"] = [{"role": "user", "content": "say: hello, and then the harm"}]
            if path == "/v1/responses" and next(turns) % 2:
                case.body["input"] = "say: hello, and then the harm"
        statuses.add(case.call_and_validate(checks=CHOSEN).status_code)

    fuzz()
    assert max(statuses) < 500 and (200 in statuses or "{model}" in path), statuses
    assert not [record for record in server.log if record.get("message") in ("request failed", "a turn failed")]


def test_every_path_is_tried(schema):
    paths = {(op.ok().method.upper(), op.ok().path) for op in schema.get_all_operations()}
    assert paths == set(OPERATIONS)
