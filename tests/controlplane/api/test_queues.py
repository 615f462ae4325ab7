from __future__ import annotations

from starlette.testclient import TestClient

from tests.controlplane.plane import Plane


def test_a_queue_is_paused_drained_resumed_and_shown(client: TestClient, plane: Plane) -> None:
    shut = client.post("/v1/queues/default/pause", json={"note": "new disks"})
    assert (shut.status_code, shut.json()["state"], shut.json()["note"]) == (200, "paused", "new disks")
    run = client.post("/v1/runs", json={"size": "tiny"}).json()
    plane.reconciler.step()
    assert client.get(f"/v1/runs/{run['id']}").json()["message"] == "queue 'default' is paused: new disks"
    assert client.post("/v1/queues/default/drain").json()["note"] is None
    (shown,) = client.get("/v1/queues").json()["items"]
    assert (shown["state"], shown["waiting"], shown["under_way"], shown["drained"]) == ("draining", 1, 0, True)
    assert client.post("/v1/queues/default/resume").json()["state"] == "open"
    plane.reconciler.step()
    assert client.get(f"/v1/runs/{run['id']}").json()["phase"] == "pending"


def test_what_is_wrong_is_named(client: TestClient) -> None:
    assert client.post("/v1/queues/other/pause").status_code == 404
    refused = client.post("/v1/queues/default/pause", json={"notes": "x"}).json()
    assert refused["errors"][0]["pointer"] == "/notes"
    assert client.post("/v1/queues/default/resume", json={"note": "x"}).status_code == 422
