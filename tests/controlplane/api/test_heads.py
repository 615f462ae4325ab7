"""HEAD answers as GET does, without a body."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.controlplane.plane import Plane


@pytest.mark.parametrize("path", ["/runs", "/runs/{run}", "/runs/{run}/logs", "/readyz", "/openapi.json", "/v1/sizes"])
def test_head_is_get_without_its_body(client: TestClient, run: dict[str, Any], path: str) -> None:
    address = path.format(run=run["id"])
    got, head = client.get(address), client.head(address)
    assert (head.status_code, head.content) == (got.status_code, b"")
    differ = {"date", "x-request-id"}
    assert [one for one in head.headers.items() if one[0] not in differ] == [
        one for one in got.headers.items() if one[0] not in differ
    ]


def test_head_of_what_is_refused_is_refused(client: TestClient) -> None:
    for path, status in (("/runs/absent", 404), ("/nowhere", 404), ("/runs?limit=0", 422), ("/runs:preview", 405)):
        reply = client.head(path)
        assert (reply.status_code, reply.content) == (status, b"")
        assert reply.headers["content-type"] == "application/problem+json"


def test_head_of_a_stream_ends(client: TestClient, plane: Plane, run: dict[str, Any]) -> None:
    plane.write(run["kubernetes"]["name"], "one\n")
    reply = client.head(f"/runs/{run['id']}/logs/stream")
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
