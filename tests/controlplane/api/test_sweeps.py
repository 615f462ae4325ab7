from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tests.controlplane.api.test_any_input import ANYTHING, post
from tests.controlplane.plane import Plane

BODY = {"name": "rates", "spec": {"size": "tiny"}, "grid": {"/train/seed": [1, 2]}}


def test_a_sweep_is_made_shown_listed_and_cancelled(client: TestClient, plane: Plane) -> None:
    reply = client.post("/v1/sweeps", json=BODY, headers={"idempotency-key": "k"})
    made = reply.json()
    assert (reply.status_code, reply.headers["location"]) == (201, f"/v1/sweeps/{made['id']}")
    again = client.post("/v1/sweeps", json=BODY, headers={"idempotency-key": "k"})
    assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
    assert again.json()["id"] == made["id"]
    assert client.get("/v1/sweeps/rates").json() == client.get(made["links"]["self"]).json() == made
    listed = client.get("/v1/sweeps").json()
    assert [one["id"] for one in listed["items"]] == [made["id"]]
    assert "items" not in listed["items"][0]
    assert client.get(f"/v1/runs/{made['items'][0]['run']}").json()["sweep"] == made["id"]
    cancelled = client.post("/v1/sweeps/rates/cancel")
    assert cancelled.status_code == 202
    plane.reconciler.step()
    assert client.get("/v1/sweeps/rates").json()["phases"] == {"cancelled": 2}


def test_what_is_wrong_is_named_in_the_sweeps_own_body(client: TestClient) -> None:
    body: dict[str, Any] = {**BODY, "grid": {"/train/seed": [1, "x"]}}
    problem = client.post("/sweeps", json=body).json()
    assert [(one["pointer"], one["code"]) for one in problem["errors"]] == [
        ("/grid/~1train~1seed/1", "invalid_setting")
    ]
    client.post("/runs", json={"size": "tiny", "name": "rates-1"})
    taken = client.post("/sweeps", json=BODY)
    assert (taken.status_code, taken.json()["errors"][0]["pointer"]) == (409, "/name")
    assert client.get("/sweeps").json()["items"] == []
    assert client.get("/sweeps/nothing").status_code == 404
    assert client.get("/sweeps", params={"cursor": "x"}).status_code == 422


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "spec": st.just({"size": "tiny"}) | ANYTHING,
            "grid": st.dictionaries(
                st.sampled_from(["/size", "/train/seed", "/labels/a", "/", "size", "/env/0", "/train"])
                | st.text(max_size=4),
                st.lists(ANYTHING, max_size=2),
                max_size=2,
            ),
            "points": st.lists(ANYTHING, max_size=2),
            "parallelism": st.integers(-1, 3) | ANYTHING,
            "name": ANYTHING,
        },
    )
)
def test_any_sweep_is_made_or_refused(client: TestClient, body: dict[str, Any]) -> None:
    post(client, "/sweeps", json.dumps(body).encode())
