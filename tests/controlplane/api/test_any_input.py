"""Whatever comes in, the API answers with a document and never with a mistake of its own."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from controlplane.api.app import create_app
from controlplane.domain.spec import RunSpec
from controlplane.settings import Listen
from tests.controlplane.plane import Plane

BOUNDED = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.generate],
    derandomize=True,
)
ODD = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 1 << 62, 1 << 63, 10**400, 1e308, float("nan"), float("inf"), "", "\0", "\ud800", [], {}])
    | st.floats()
    | st.text(max_size=20)
)
ANYTHING = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
SECTIONS = {name: list(getattr(field.annotation, "model_fields", {})) for name, field in RunSpec.model_fields.items()}


@st.composite
def near_misses(draw: st.DrawFn) -> dict[str, Any]:
    """Specs of the right form with odd values."""
    spec: dict[str, Any] = {"size": draw(st.sampled_from(["tiny", "124m", "175b", 7, None]))}
    for name in draw(st.sets(st.sampled_from(sorted(SECTIONS)), max_size=4)):
        inner = SECTIONS[name]
        spec[name] = draw(st.dictionaries(st.sampled_from(inner), ODD, max_size=3) if inner else ANYTHING)
    spec["train"] = draw(st.dictionaries(st.sampled_from(["steps", "seed", "dim", "heads", "context", "data"]), ODD))
    return spec


def post(client: TestClient, path: str, body: bytes) -> None:
    reply = client.post(path, content=body, headers={"content-type": "application/json"})
    assert reply.status_code < 500, (body, reply.text)
    if reply.status_code >= 400:
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.json()["code"]


@BOUNDED
@given(near_misses() | ANYTHING)
def test_any_json_is_planned_or_refused(client: TestClient, value: Any) -> None:
    for path in ("/plans", "/runs:preview"):
        post(client, path, json.dumps(value).encode())


@BOUNDED
@given(near_misses())
def test_any_spec_makes_a_run_or_is_refused(client: TestClient, value: Any) -> None:
    post(client, "/runs", json.dumps(value).encode())


@BOUNDED
@given(st.binary(max_size=100))
def test_any_bytes_are_refused(client: TestClient, body: bytes) -> None:
    post(client, "/runs", body)


@BOUNDED
@given(ANYTHING, ANYTHING)
def test_any_points_are_taken_or_refused(
    client: TestClient, plane: Plane, run: dict[str, Any], key: Any, value: Any
) -> None:
    body = {"attempt": 1, "points": [{"seq": 1, "step": 1, "time": 1.0, "loss": value, str(key): value}]}
    headers = {"authorization": f"Bearer {plane.token(run['id'])}", "content-type": "application/json"}
    reply = client.post(f"/runs/{run['id']}/metrics", content=json.dumps(body).encode(), headers=headers)
    assert reply.status_code in {200, 422}, reply.text
    assert client.get(f"/runs/{run['id']}").status_code == 200


@BOUNDED
@given(st.text(max_size=40), st.text(max_size=40))
def test_any_address_and_query_are_answered(client: TestClient, run: str, query: str) -> None:
    for path in ("", "/logs", "/metrics", "/events", "/manifest"):
        params = dict.fromkeys(("attempt", "after", "keys", "tail", "downsample", "rank"), query)
        reply = client.get("/runs/" + run.encode("utf-8", "replace").hex("%") + path, params=params)
        assert reply.status_code < 500, reply.text


@pytest.mark.unmeasured
def test_every_operation_answers_as_it_is_documented(plane: Plane) -> None:
    here = dataclasses.replace(plane.settings, listen=Listen(host="testserver"))  # the name that schemathesis calls
    schema: Any = schemathesis.openapi.from_asgi("/openapi.json", create_app(plane.context, here))
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    answered = set()
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(BOUNDED, max_examples=5, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy())
        def answer(case: Any) -> None:
            case.call_and_validate(checks=checks)
            answered.add(case.operation.label)

        if not operation.path.endswith("/stream"):  # a live run's does not end
            answer()
    assert len(answered) > 15
