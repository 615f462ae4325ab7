from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from starlette.testclient import TestClient

from controlplane.clusters.base import Unavailable
from controlplane.domain.phases import TERMINAL
from tests.controlplane.plane import Plane


def pointers(reply: Any) -> list[str]:
    assert reply.headers["content-type"] == "application/problem+json"
    return [error["pointer"] for error in reply.json()["errors"]]


def test_a_run_is_reached_by_a_name_with_a_slash(client: TestClient) -> None:
    made = client.post("/runs", json={"size": "tiny", "name": "lr/3e-4"}).json()
    assert client.get("/runs/lr%2F3e-4").json()["id"] == made["id"]
    assert client.post("/v1/runs/lr%2f3e-4/cancel").json()["desired"] == "cancelled"
    assert client.get("/runs/lr%2F3e-4/nope").json()["instance"] == "/runs/lr/3e-4/nope"
    assert client.post("/v1/runs/lr%2F3e-4").headers["allow"] == "DELETE, GET, HEAD, PATCH"
    assert client.get("/runs?q=a%00b").status_code == client.get("/runs/%00").status_code == 422
    assert client.get("/runs/other%2Frun").json()["detail"] == "there is no run 'other/run'"


def test_a_size_alone_makes_a_run_with_nothing_left_open(client: TestClient) -> None:
    reply = client.post("/v1/runs", json={"size": "tiny"})
    made = reply.json()
    assert reply.status_code == 201
    assert reply.headers["location"] == f"/v1/runs/{made['id']}"
    assert reply.headers["idempotency-replayed"] == "false"
    assert (made["phase"], made["desired"], made["attempt"], made["size"]) == ("queued", "running", 1, "tiny")
    assert made["spec"] == {"size": "tiny"}
    assert made["resolved"]["config"]["learning_rate"] > 0
    assert made["resolved"]["world_size"] == 2
    assert made["resolved"]["state_bytes"]["total"] > 0
    assert made["progress"] is None
    assert made["kubernetes"]["kind"] == "PyTorchJob"
    assert made["folder"] == made["resolved"]["config"]["out"]
    assert datetime.fromisoformat(made["created_at"]).tzinfo is not None


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_every_address_works_with_and_without_its_version(client: TestClient, run: dict[str, Any], prefix: str) -> None:
    assert client.post(f"{prefix}/runs:preview", json={"size": "tiny"}).status_code == 200
    assert client.get(f"{prefix}/runs/{run['id']}").json()["id"] == run["id"]
    assert client.get(f"{prefix}/sizes").status_code == 200
    assert client.get(f"{prefix}/readyz").status_code == 200


def test_a_runs_links_lead_somewhere(client: TestClient, plane: Plane, run: dict[str, Any]) -> None:
    plane.end(run["id"])
    for name, link in run["links"].items():
        assert client.get(link).status_code == 200, name


def test_the_same_key_and_body_give_the_same_run(client: TestClient) -> None:
    headers = {"idempotency-key": "k-1"}
    first = client.post("/runs", json={"size": "tiny"}, headers=headers)
    again = client.post("/runs", json={"size": "tiny"}, headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert len(client.get("/runs").json()["items"]) == 1


def test_a_key_that_comes_with_another_body_is_refused(client: TestClient) -> None:
    headers = {"idempotency-key": "k-1"}
    client.post("/runs", json={"size": "tiny"}, headers=headers)
    reply = client.post("/runs", json={"size": "tiny", "name": "other"}, headers=headers)
    assert (reply.status_code, reply.json()["code"]) == (422, "idempotency_key_reused")
    assert len(client.get("/runs").json()["items"]) == 1


@pytest.mark.parametrize("key", ["", "k" * 256, "a b"])
def test_a_bad_key_is_refused(client: TestClient, key: str) -> None:
    reply = client.post("/runs", json={"size": "tiny"}, headers={"idempotency-key": key})
    assert (reply.status_code, pointers(reply)) == (422, ["header:idempotency-key"])


def test_a_live_name_is_taken_and_its_holder_named(client: TestClient, run: dict[str, Any]) -> None:
    reply = client.post("/runs", json={"size": "tiny", "name": "first"})
    assert (reply.status_code, reply.json()["code"]) == (409, "name_in_use")
    assert reply.json()["holder"] == run["id"]
    assert pointers(reply) == ["/name"]


def test_an_ended_run_leaves_its_name(client: TestClient, plane: Plane, run: dict[str, Any]) -> None:
    plane.end(run["id"])
    assert client.post("/runs", json={"size": "tiny", "name": "first"}).status_code == 201


def test_a_live_run_is_found_by_its_name(client: TestClient) -> None:
    made = client.post("/runs", json={"size": "tiny", "name": "Größe 試"}).json()
    assert client.get("/runs/Größe 試").json()["id"] == made["id"]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, ["/size"]),
        ({"size": "900m"}, ["/size"]),
        ({"size": "tiny", "gpus": 1}, ["/gpus"]),
        ({"size": "tiny", "train": {"learning_rate": -1}}, ["/train/learning_rate"]),
        ({"size": "tiny", "train": {"nonsense": 1}}, ["/train/nonsense"]),
        ({"size": "tiny", "train": {"kv_heads": 3}}, ["/train/kv_heads"]),
        ({"size": "tiny", "train": {"out": "/srv/x"}}, ["/train/out"]),
        ({"size": "tiny", "train": {"seed": 1.5, "steps": "ten"}}, ["/train/seed", "/train/steps"]),
        ({"size": "tiny", "train": [1]}, ["/train"]),
        ({"size": "tiny", "compute": {"nodes": True}}, ["/compute/nodes"]),
        ({"size": "tiny", "data": {"uri": "relative"}}, ["/data/uri"]),
        ({"size": "tiny", "data": {"uri": "/nowhere/at/all"}}, ["/data/uri"]),
        ({"size": "tiny", "limits": {"max_runtime_s": 0}}, ["/limits/max_runtime_s"]),
        ({"size": "tiny", "env": [{"name": "RANK", "value": "1"}]}, ["/env/0/name"]),
        ({"size": "tiny", "name": " "}, ["/name"]),
    ],
)
@pytest.mark.parametrize("path", ["/runs", "/runs:preview"])
def test_bad_fields_are_pointed_at_and_nothing_is_made(
    client: TestClient, plane: Plane, path: str, body: dict[str, Any], where: list[str]
) -> None:
    reply = client.post(path, json=body)
    assert (reply.status_code, pointers(reply)) == (422, where), reply.text
    assert client.get("/runs").json()["items"] == []
    assert [entry.name for entry in plane.home.iterdir() if entry.name == "runs"] == []


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"size": "tiny", "compute": {"processes_per_node": 2, "cpus_per_node": 12}}, ["/compute/cpus_per_node"]),
        ({"size": "175b"}, ["/size"]),
    ],
)
def test_what_this_machine_can_never_run_is_refused(client: TestClient, body: dict[str, Any], where: list[str]) -> None:
    reply = client.post("/runs", json=body)
    assert (reply.status_code, pointers(reply)) == (422, where)


def test_a_preview_shows_everything_and_makes_nothing(client: TestClient) -> None:
    shown = client.post("/runs:preview", json={"size": "tiny"}).json()
    assert shown["plan"]["fits"]
    assert shown["plan"]["resolved"]["config"]["steps"] > 0
    assert shown["manifest"]["kind"] == "PyTorchJob"
    (environment,) = shown["environment"].values()
    assert {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"} <= set(environment)
    assert shown["warnings"] == []
    assert client.get("/runs").json()["items"] == []


def test_a_preview_of_what_cannot_run_here_says_so(client: TestClient) -> None:
    shown = client.post("/runs:preview", json={"size": "175b"}).json()
    assert not shown["plan"]["fits"]
    assert [problem["pointer"] for problem in shown["plan"]["problems"]] == ["/size"]
    assert shown["warnings"]


def test_runs_are_listed_newest_first_a_page_at_a_time(client: TestClient) -> None:
    made = [client.post("/runs", json={"size": "tiny"}).json()["id"] for _ in range(5)]
    listed, cursor = [], None
    for _ in range(3):
        page = client.get("/runs", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        listed += [run["id"] for run in page["items"]]
        cursor = page["next_cursor"]
    assert listed == made[::-1]
    assert cursor is None


def test_runs_are_filtered(client: TestClient, plane: Plane) -> None:
    one = client.post("/runs", json={"size": "tiny", "name": "alpha", "labels": {"team": "lm", "x": "a.b"}}).json()[
        "id"
    ]
    two = client.post("/runs", json={"size": "tiny", "name": "beta", "labels": {"team": "lm"}}).json()["id"]
    plane.end(one)

    def found(**query: Any) -> list[str]:
        return [run["id"] for run in client.get("/runs", params=query).json()["items"]]

    assert found(phase="pending") == [two]
    assert found(phase=["pending", "cancelled"]) == [two, one]
    assert found(label="team=lm") == [two, one]
    assert found(label=["team=lm", "x=a.b"]) == [one]
    assert found(q="LPH") == [one]
    assert found(q=two) == [two]
    assert found(name="beta") == [two]
    assert found(q="%") == []


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ("limit=0", ["?limit"]),
        ("limit=501", ["?limit"]),
        ("limit=99999999999999999999999", ["?limit"]),
        ("phase=asleep", ["?phase"]),
        ("label=team", ["?label"]),
        ("label==lm", ["?label"]),
        ("label=team=l%20m", ["?label"]),
        ("cursor=nonsense", ["?cursor"]),
        ("cursor=%F0%9F%98%80", ["?cursor"]),
        ("cursor=" + "x" * 200, ["?cursor"]),
    ],
)
def test_a_bad_query_is_pointed_at(client: TestClient, query: str, where: list[str]) -> None:
    reply = client.get(f"/runs?{query}")
    assert (reply.status_code, pointers(reply)) == (422, where)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("phase=nope", "got \"nope\"; allowed: 'queued', 'submitting', "),
        ("since=never", 'got "never"; allowed: a time of ISO 8601 with its zone, such as 2026-11-30T12:00:00Z'),
        ("until=2026-13-01", 'got "2026-13-01"; allowed: a time of ISO 8601 with its zone'),
        ("since=2026-01-01T00:00:00", 'got "2026-01-01T00:00:00"; allowed: a time of ISO 8601 with its zone'),
        ("label==lm", "got '=lm'; allowed: key=value, such as team=lm"),
    ],
)
def test_a_bad_query_says_what_was_given_and_what_is_allowed(client: TestClient, query: str, told: str) -> None:
    (error,) = client.get(f"/runs?{query}").json()["errors"]
    assert error["detail"].startswith(told)


def test_an_attempt_that_a_run_has_not_had_is_told_those_that_it_has(client: TestClient) -> None:
    run = client.post("/runs", json={"size": "tiny"}).json()["id"]
    for path in ("manifest", "logs", "pods"):
        reply = client.get(f"/runs/{run}/{path}?attempt=9")
        assert reply.status_code == 404
        assert reply.json()["detail"] == f"there is no attempt 9: run {run} has had 1 to 1"


def test_a_run_that_is_not_there_is_not_found(client: TestClient) -> None:
    for method, path in [
        ("GET", ""), ("POST", "/cancel"), ("POST", "/retry"), ("GET", "/manifest"), ("GET", "/attempts"),
        ("POST", "/checkpoints"), ("GET", "/pods"), ("GET", "/events"), ("GET", "/logs"), ("GET", "/metrics"),
        ("GET", "/logs/stream"), ("GET", "/events/stream"), ("GET", "/metrics/stream"),
    ]:  # fmt: skip
        for run in ("run_00000000000000000000000000", "nobody"):
            reply = client.request(method, f"/runs/{run}{path}")
            assert (reply.status_code, reply.json()["code"]) == (404, "not_found"), path


def test_a_cancel_is_stored_at_once_and_twice_is_once(client: TestClient, run: dict[str, Any]) -> None:
    for _ in range(2):
        reply = client.post(f"/runs/{run['id']}/cancel")
        assert (reply.status_code, reply.json()["desired"]) == (202, "cancelled")
    kinds = [event["kind"] for event in client.get(f"/runs/{run['id']}/events").json()["items"]]
    assert kinds.count("cancel") == 1


def test_a_cancel_of_an_ended_run_changes_nothing(client: TestClient, plane: Plane, run: dict[str, Any]) -> None:
    plane.end(run["id"])
    before = client.get(f"/runs/{run['id']}").json()
    assert client.post(f"/runs/{run['id']}/cancel").json() == before
    assert before["phase"] in TERMINAL


def test_only_an_ended_run_can_be_tried_again(client: TestClient, plane: Plane, run: dict[str, Any]) -> None:
    reply = client.post(f"/runs/{run['id']}/retry")
    assert (reply.status_code, reply.json()["code"]) == (409, "still_running")
    plane.end(run["id"])
    headers = {"idempotency-key": "again"}
    reply = client.post(f"/runs/{run['id']}/retry", headers=headers)
    assert reply.status_code == 201
    assert reply.json()["retry_of"] == run["id"]
    assert reply.headers["location"] == f"/v1/runs/{reply.json()['id']}"
    replay = client.post(f"/runs/{run['id']}/retry", headers=headers)
    assert (replay.status_code, replay.json()["id"]) == (200, reply.json()["id"])


def test_attempts_and_manifest_tell_of_the_object(client: TestClient, run: dict[str, Any]) -> None:
    (attempt,) = client.get(f"/runs/{run['id']}/attempts").json()["items"]
    assert (attempt["attempt"], attempt["name"], attempt["exit_code"]) == (1, run["kubernetes"]["name"], None)
    manifest = client.get(f"/runs/{run['id']}/manifest", params={"attempt": 1}).json()
    assert manifest["metadata"]["name"] == attempt["name"]
    assert manifest == client.get(f"/runs/{run['id']}/manifest").json()


def test_pods_are_as_the_cluster_shows_them_else_as_last_seen(
    client: TestClient, plane: Plane, run: dict[str, Any]
) -> None:
    def pods() -> tuple[bool, list[dict[str, Any]]]:
        told = client.get(f"/runs/{run['id']}/pods").json()
        assert (told["attempt"], told["name"]) == (1, run["kubernetes"]["name"])
        return told["live"], told["items"]

    assert pods() == (False, [])
    name = plane.start(run["id"])
    plane.cluster.pod(name, node="gpu-7")
    live, (pod,) = pods()
    assert (live, pod["rank"], pod["name"]) == (True, 0, f"{name}-master-0")
    assert (pod["phase"], pod["node"], pod["exit_code"]) == ("Running", "gpu-7", None)
    assert pod["started_at"] is not None
    plane.cluster.fail = Unavailable("nobody answers")
    live, (pod,) = pods()
    assert (live, pod["phase"], pod["node"], pod["exit_code"]) == (False, "Running", None, None)
    plane.cluster.fail = None
    plane.cluster.end(name, 1, reason="OOMKilled", message="too much")
    live, (pod,) = pods()
    assert (live, pod["phase"], pod["reason"], pod["message"]) == (True, "Failed", "OOMKilled", "too much")
    plane.reconciler.step()
    last = client.get(f"/runs/{run['id']}/pods?attempt=1").json()
    assert (last["live"], last["items"][0]["exit_code"]) == (False, 1)
    assert last["items"][0]["finished_at"] is not None


def test_no_document_holds_the_runs_token(client: TestClient, plane: Plane, run: dict[str, Any]) -> None:
    token = plane.token(run["id"])
    for path in ("", "/manifest", "/attempts", "/pods", "/events"):
        assert token not in client.get(f"/runs/{run['id']}{path}").text


@pytest.mark.parametrize("attempt", ["2", "2147483648"])
def test_an_attempt_that_is_not_there_is_not_found(client: TestClient, run: dict[str, Any], attempt: str) -> None:
    reply = client.get(f"/runs/{run['id']}/manifest?attempt={attempt}")
    assert (reply.status_code, reply.json()["code"]) == (404, "not_found")
    for path in ("logs", "pods"):
        reply = client.get(f"/runs/{run['id']}/{path}?attempt={attempt}")
        assert (reply.status_code, reply.json()["code"]) == (404, "not_found")


def test_events_tell_what_happened_in_order(client: TestClient, plane: Plane, run: dict[str, Any]) -> None:
    plane.start(run["id"])
    events = client.get(f"/runs/{run['id']}/events").json()["items"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    told = [event["data"]["phase"] for event in events if event["kind"] in {"created", "phase"}]
    assert told[:3] == ["queued", "submitting", "pending"]
    assert told[-1] == "running"
    assert client.get(f"/runs/{run['id']}/events?after=1&limit=1").json()["items"] == events[1:2]
    assert pointers(client.get(f"/runs/{run['id']}/events?after=-1")) == ["?after"]
