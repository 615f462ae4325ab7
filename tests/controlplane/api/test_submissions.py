"""The short way of `POST /runs` does what the long one does: here each request goes both ways."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from controlplane.api import runs
from controlplane.services.context import Context
from tests.controlplane.plane import Plane

SHORT, LONG = "application/json", "application/json; charset=utf-8"
CHANGES = {"id", "name", "created_at", "folder", "links", "kubernetes", "resolved", "spec"}


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What came the short way: it calls the route's function by its name, the framework has it by hand."""
    taken: list[Any] = []
    create = runs.create

    async def noted(spec: Any, context: Context, user: str, key: str | None) -> Any:
        taken.append(spec)
        return await create(spec, context, user, key)

    monkeypatch.setattr(runs, "create", noted)
    return taken


def post(client: TestClient, body: Any, kind: str, path: str = "/v1/runs", **headers: str) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(path, content=content, headers={"content-type": kind, **headers})


@pytest.mark.parametrize("path", ["/runs", "/v1/runs"])
def test_a_run_is_the_same_whichever_way_it_was_asked_for(client: TestClient, ways: list[Any], path: str) -> None:
    short, long = (post(client, {"size": "tiny", "labels": {"team": "lm"}}, kind, path) for kind in (SHORT, LONG))
    assert len(ways) == 1
    assert short.status_code == long.status_code == 201
    assert short.headers["location"] == f"/v1/runs/{short.json()['id']}"
    assert short.headers.keys() == long.headers.keys()
    same = [{name: value for name, value in one.json().items() if name not in CHANGES} for one in (short, long)]
    assert same[0] == same[1]
    assert short.json() == client.get(short.headers["location"]).json()


def test_a_key_makes_one_run_whichever_way_it_comes(client: TestClient, ways: list[Any]) -> None:
    replies = [
        post(client, {"size": "tiny", "name": "one"}, kind, **{"idempotency-key": "k"}) for kind in (SHORT, LONG, SHORT)
    ]
    assert [one.status_code for one in replies] == [201, 200, 200]
    assert len({one.json()["id"] for one in replies}) == 1
    assert [one.headers["idempotency-replayed"] for one in replies] == ["false", "true", "true"]
    assert len(ways) == 2
    reused = [post(client, {"size": "tiny", "name": "two"}, kind, **{"idempotency-key": "k"}) for kind in (SHORT, LONG)]
    assert [one.json()["code"] for one in reused] == ["idempotency_key_reused"] * 2


def test_a_body_that_says_it_is_compressed_is_refused_as_ever(client: TestClient, ways: list[Any]) -> None:
    reply = post(client, {"size": "tiny"}, SHORT, **{"content-encoding": "gzip"})
    assert (reply.status_code, reply.json()["detail"], ways) == (415, "got content-encoding gzip; allowed: none", [])
    assert post(client, {"size": "tiny"}, SHORT, **{"content-encoding": "identity"}).status_code == 201


@pytest.mark.parametrize(
    ("body", "status", "short"),
    [
        ({"size": "tiny", "name": "taken"}, 409, 1),
        ({"size": "tiny", "after": "nobody"}, 422, 1),
        ({"size": "huge"}, 422, 0),
        ({"size": "tiny", "sise": 1}, 422, 0),
        ({}, 422, 0),
        ([], 422, 0),
        (b"", 422, 0),
        (b"null", 422, 0),
        (b"{", 400, 0),
        (b'{"size": "tiny", "size": "tiny"}', 422, 0),
        (b'{"size": "tiny", "notes": "\\u0000"}', 422, 0),
    ],
)
def test_what_is_refused_is_refused_in_the_same_words(
    client: TestClient, ways: list[Any], body: Any, status: int, short: int
) -> None:
    assert post(client, {"size": "tiny", "name": "taken"}, SHORT).status_code == 201
    ways.clear()
    told = [post(client, body, kind) for kind in (SHORT, LONG)]
    assert [one.status_code for one in told] == [status] * 2
    assert told[0].headers["content-type"] == "application/problem+json"
    short_words, long_words = ({**one.json(), "request_id": ""} for one in told)
    assert short_words == long_words
    assert len(ways) == short


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é"])
def test_a_bad_key_goes_the_long_way(client: TestClient, ways: list[Any], key: str) -> None:
    reply = client.post("/runs", json={"size": "tiny"}, headers={b"idempotency-key": key.encode("latin-1")})
    assert (reply.status_code, ways) == (422, [])


def test_what_is_odd_of_a_request_goes_the_long_way(client: TestClient, plane: Plane, ways: list[Any]) -> None:
    assert client.post("/runs?dry=1", json={"size": "tiny"}).status_code == 422
    assert post(client, {"size": "tiny"}, "text/plain").status_code == 415
    large = b" " * plane.settings.max_body_bytes + b'{"size": "tiny"}'
    assert post(client, large, SHORT).status_code == 413
    assert client.put("/runs", json={"size": "tiny"}).status_code == 405
    assert ways == []
