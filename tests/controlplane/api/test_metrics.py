from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from controlplane.clusters.base import Caller
from tests.controlplane.plane import Plane


def point(seq: int, **values: Any) -> dict[str, Any]:
    return {"seq": seq, "step": seq, "time": 1795518320.5 + seq, "loss": 5.0 - seq / 100, **values}


def post(client: TestClient, run: str, token: str, body: Any) -> Any:
    return client.post(f"/v1/runs/{run}/metrics", json=body, headers={"authorization": f"Bearer {token}"})


def test_points_come_in_once_and_are_acknowledged(client: TestClient, plane: Plane, run: dict[str, Any]) -> None:
    token = plane.token(run["id"])
    body = {"attempt": 1, "points": [point(1, lr=0.1), point(2, mfu=None), point(3, val_loss=4.5)]}
    for _ in range(2):
        reply = post(client, run["id"], token, body)
        assert (reply.status_code, reply.json()) == (200, {"acknowledged": 3, "save": 0, "wait_s": 0.01})
    points = client.get(f"/runs/{run['id']}/metrics").json()["points"]
    assert [each["seq"] for each in points] == [1, 2, 3]
    assert points[0]["lr"] == 0.1
    assert points[1]["mfu"] is None
    progress = client.get(f"/runs/{run['id']}").json()["progress"]
    assert (progress["step"], progress["val_loss"]) == (3, 4.5)


def test_a_checkpoint_that_is_asked_for_is_told_in_answers_to_posts(
    client: TestClient, plane: Plane, run: dict[str, Any]
) -> None:
    token, path = plane.token(run["id"]), f"/runs/{run['id']}/checkpoints"
    refused = client.post(path)
    assert (refused.status_code, refused.json()["code"]) == (409, "not_reporting")
    plane.start(run["id"])
    assert post(client, run["id"], token, {"attempt": 1, "points": [point(1)]}).json()["save"] == 0
    for _ in range(2):
        assert (client.post(path).status_code, client.post(path).json()["id"]) == (202, run["id"])
    (event,) = (one for one in client.get(f"/runs/{run['id']}/events").json()["items"] if one["kind"] == "save")
    told = post(client, run["id"], token, {"attempt": 1, "points": []}).json()
    assert told == {"acknowledged": 1, "save": event["seq"], "wait_s": 0.01}
    assert event["message"] == "local asked for a checkpoint"


def test_what_the_trainer_posts_is_taken(client: TestClient, plane: Plane, run: dict[str, Any]) -> None:
    values = dict.fromkeys(("lr", "grad_norm", "tokens_per_s", "mfu", "memory_bytes", "eta_s"), 1.5)
    body = {"attempt": 1, "points": [{"attempt": 1, **point(1, tokens=16384, **values)}]}
    assert post(client, run["id"], plane.token(run["id"]), body).status_code == 200


def test_a_curve_is_picked_and_thinned(client: TestClient, plane: Plane, run: dict[str, Any]) -> None:
    points = [point(seq, lr=0.1) for seq in range(1, 301)]
    post(client, run["id"], plane.token(run["id"]), {"attempt": 1, "points": points})
    shown = client.get(f"/runs/{run['id']}/metrics?keys=lr&downsample=10").json()["points"]
    assert 2 <= len(shown) <= 10
    assert (shown[0]["step"], shown[-1]["step"]) == (1, 300)
    assert "loss" not in shown[0]
    assert client.get(f"/runs/{run['id']}/metrics?keys=loss,val_loss").json()["points"][0]["loss"] == points[0]["loss"]


def test_a_pod_reports_with_its_service_accounts_long_token(
    client: TestClient, plane: Plane, run: dict[str, Any]
) -> None:
    plane.reconciler.step()
    pod = client.get(f"/runs/{run['id']}/attempts").json()["items"][0]["pods"][0]["name"]
    uid = plane.cluster.observe()[0].pods[0].uid
    token = f"header.{'x' * 4000}.signature"
    plane.cluster.callers[token] = Caller(pod, uid)
    assert post(client, run["id"], token, {"attempt": 1, "points": [point(1)]}).status_code == 200
    assert post(client, run["id"], token + "x", {"attempt": 1, "points": [point(2)]}).status_code == 401


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer nonsense", "Basic abc", "Bearer ä"])
def test_only_the_attempts_own_token_may_report(
    client: TestClient, run: dict[str, Any], authorization: str | None
) -> None:
    headers = {} if authorization is None else {"authorization": authorization.encode("latin-1")}
    reply = client.post(f"/runs/{run['id']}/metrics", json={"attempt": 1, "points": []}, headers=headers)  # type: ignore[arg-type]
    assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized")
    assert reply.headers["www-authenticate"] == "Bearer"


def test_a_token_serves_its_own_run_and_attempt_alone(client: TestClient, plane: Plane, run: dict[str, Any]) -> None:
    other = client.post("/runs", json={"size": "tiny"}).json()["id"]
    token = plane.token(run["id"])
    assert post(client, other, token, {"attempt": 1, "points": [point(1)]}).status_code == 401
    assert post(client, run["id"], token, {"attempt": 2, "points": [point(1)]}).status_code == 401
    assert post(client, "run_00000000000000000000000000", token, {"attempt": 1, "points": []}).status_code == 401


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, ["/attempt", "/points"]),
        ({"attempt": 0, "points": []}, ["/attempt"]),
        ({"attempt": 1, "points": [{}]}, ["/points/0/seq", "/points/0/step", "/points/0/time"]),
        ({"attempt": 1, "points": [point(1) | {"seq": 0}]}, ["/points/0/seq"]),
        ({"attempt": 1, "points": [point(1) | {"seq": "1"}]}, ["/points/0/seq"]),
        ({"attempt": 1, "points": [point(1), point(2) | {"step": -1}]}, ["/points/1/step"]),
        ({"attempt": 1, "points": [point(1) | {"time": -5}]}, ["/points/0/time"]),
        ({"attempt": 1, "points": [point(1, loss="low")]}, ["/points/0/loss"]),
        ({"attempt": 1, "points": [point(1, loss=True)]}, ["/points/0/loss"]),
        ({"attempt": 1, "points": [point(1, loss=[1])]}, ["/points/0/loss"]),
        ({"attempt": 1, "points": [], "rank": 1}, ["/rank"]),
    ],
)
def test_bad_points_are_pointed_at(
    client: TestClient, plane: Plane, run: dict[str, Any], body: Any, where: list[str]
) -> None:
    reply = post(client, run["id"], plane.token(run["id"]), body)
    assert reply.status_code == 422
    assert sorted({error["pointer"] for error in reply.json()["errors"]}) == where
    assert client.get(f"/runs/{run['id']}/metrics").json()["points"] == []


def test_names_of_values_are_names(client: TestClient, plane: Plane, run: dict[str, Any]) -> None:
    reply = post(client, run["id"], plane.token(run["id"]), {"attempt": 1, "points": [point(1) | {"a b": 1}]})
    assert reply.status_code == 422


def test_a_number_that_is_none_is_refused_with_its_place(client: TestClient, plane: Plane, run: dict[str, Any]) -> None:
    body = json.dumps({"attempt": 1, "points": [point(1, loss=float("nan"))]})
    headers = {"authorization": f"Bearer {plane.token(run['id'])}", "content-type": "application/json"}
    reply = client.post(f"/runs/{run['id']}/metrics", content=body, headers=headers)
    assert (reply.status_code, reply.json()["errors"][0]["pointer"]) == (422, "/points/0/loss")


@pytest.mark.parametrize("query", ["keys=a b", "keys=,", "downsample=1", "downsample=x"])
def test_a_bad_query_is_pointed_at(client: TestClient, run: dict[str, Any], query: str) -> None:
    reply = client.get(f"/runs/{run['id']}/metrics?{query}")
    assert reply.status_code == 422
    assert reply.json()["errors"][0]["pointer"] == f"?{query.partition('=')[0]}"
