from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from controlplane.clusters.base import Check, Traits, Unavailable
from controlplane.domain.errors import StoreUnavailable
from controlplane.domain.phases import Phase
from tests.controlplane.plane import Plane


def samples(client: TestClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(reply.text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def test_a_live_process_answers(client: TestClient) -> None:
    assert client.get("/livez").json() == {"live": True}


def test_a_ready_one_names_its_parts(client: TestClient) -> None:
    ready = client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["ready"]
    assert set(ready.json()["components"]) == {"store", "cluster", "volume"}


def test_an_absent_cluster_stops_no_request(client: TestClient, plane: Plane) -> None:
    plane.cluster.fail = Unavailable("connection refused")
    reply = client.get("/readyz")
    assert (reply.status_code, reply.json()["ready"]) == (200, True)
    assert not reply.json()["components"]["cluster"]["ready"]
    assert "connection refused" in reply.json()["components"]["cluster"]["detail"]


def test_a_cluster_says_what_it_has_and_what_it_lacks(client: TestClient, plane: Plane) -> None:
    plane.cluster.found = [Check("operator", ok=False, detail="no such deployment", mend="install it")]
    plane.cluster.shown = Traits(namespace="lm", kinds=("Job",), reasons={"Job": "always there"}, shared_folders=False)
    (found,) = client.get("/v1/clusters").json()["items"]
    assert (found["namespace"], found["kind"], found["kinds"]) == ("lm", "Job", {"Job": "always there"})
    assert not found["ready"]
    assert found["checks"] == [
        {"name": "operator", "ok": False, "detail": "no such deployment", "mend": "install it"},
        {
            "name": "storage",
            "ok": False,
            "detail": "runs without a checkpoint.uri have no place",
            "mend": "set --storage (TERAGPT_STORAGE), or give each run a checkpoint.uri",
        },
    ]


def test_without_its_store_it_is_not_ready(client: TestClient, plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise StoreUnavailable("disk gone")

    monkeypatch.setattr(plane.store, "ping", away)
    reply = client.get("/readyz")
    assert (reply.status_code, reply.json()["ready"]) == (503, False)


def test_runs_are_counted_by_phase(client: TestClient, run: dict[str, Any], plane: Plane) -> None:
    counted = samples(client)
    assert counted["teragpt_runs", frozenset({("phase", "queued")})] == 1
    assert {dict(labels)["phase"] for name, labels in counted if name == "teragpt_runs"} == set(Phase)
    assert counted["teragpt_outbox_rows", frozenset()] == 1
    plane.start(run["id"])
    counted = samples(client)
    assert counted["teragpt_runs", frozenset({("phase", "running")})] == 1
    assert counted["teragpt_outbox_rows", frozenset()] == 0


def test_requests_are_counted_by_route_and_not_by_address_or_version(client: TestClient, run: dict[str, Any]) -> None:
    for _ in range(3):
        client.get(f"/v1/runs/{run['id']}")
    client.get("/runs/nobody")
    client.get("/wp-login.php")
    counted = samples(client)

    def requests(route: str, status: str, method: str = "GET") -> float:
        return counted[
            "teragpt_http_requests_total", frozenset({"method": method, "route": route, "status": status}.items())
        ]

    assert requests("/runs/{run}", "200") == 3
    assert requests("/runs/{run}", "404") == 1
    assert requests("/runs", "201", "POST") == 1
    assert requests("(none)", "404") == 1
    assert counted["teragpt_http_request_seconds_count", frozenset({("route", "/runs/{run}")})] == 4


def test_every_request_has_an_id_that_its_caller_may_give(client: TestClient) -> None:
    assert client.get("/livez").headers["x-request-id"] != client.get("/livez").headers["x-request-id"]
    assert client.get("/livez", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    reply = client.get("/nowhere", headers={"x-request-id": "bad id\t" * 20})
    assert reply.json()["request_id"] == reply.headers["x-request-id"]
    assert " " not in reply.headers["x-request-id"]


def test_an_error_that_nobody_caught_tells_nothing_of_its_trace(
    client: TestClient, plane: Plane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(plane.store, "read", broken)
    reply = client.get("/v1/runs")
    assert (reply.status_code, reply.json()["code"]) == (500, "internal")
    assert reply.headers["content-type"] == "application/problem+json"
    assert "secret" not in reply.text
    assert "ZeroDivision" not in reply.text
    failed = [record for record in caplog.records if record.getMessage() == "request failed"]
    assert failed[0].__dict__["request"] == reply.headers["x-request-id"]
    assert failed[0].exc_info


def test_a_store_that_is_away_is_not_our_mistake(
    client: TestClient, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise StoreUnavailable("disk full")

    monkeypatch.setattr(plane.store, "read", away)
    reply = client.get("/v1/runs")
    assert (reply.status_code, reply.json()["code"]) == (503, "unavailable")
    assert reply.headers["retry-after"]
