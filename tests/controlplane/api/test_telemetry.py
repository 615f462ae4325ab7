from __future__ import annotations

import logging
import time
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from controlplane.api.telemetry import Measurements
from controlplane.clusters.watches import RESTARTS
from controlplane.logfmt import Logfmt
from tests.controlplane.plane import Plane


@pytest.mark.parametrize(
    ("method", "path", "level"),
    [
        ("POST", "/runs/{run}/cancel", logging.INFO),
        ("GET", "/runs/{run}", logging.DEBUG),
        ("GET", "/livez", logging.DEBUG),
        ("GET", "/runs/nothing", logging.INFO),
        ("POST", "/runs/{run}/metrics", logging.DEBUG),
    ],
)
def test_what_changes_something_or_fails_is_logged_and_what_is_asked_often_is_not(
    client: TestClient,
    plane: Plane,
    run: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    method: str,
    path: str,
    level: int,
) -> None:
    headers = {"authorization": f"Bearer {plane.token(run['id'])}"}
    body = {"attempt": 1, "points": []} if path.endswith("/metrics") else None
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="controlplane.http"):
        client.request(method, path.replace("{run}", run["id"]), json=body, headers=headers)
    (record,) = [record for record in caplog.records if record.name == "controlplane.http"]
    assert (record.levelno, record.getMessage()) == (level, "request")


def test_lines_of_a_request_name_it_and_its_run(
    client: TestClient, run: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(Logfmt())
    with caplog.at_level(logging.INFO, logger="controlplane.http"):
        client.post(f"/runs/{run['id']}/cancel", headers={"x-request-id": "abc"})
    assert "request=abc" in caplog.text
    assert f"run={run['id']}" in caplog.text


def sample(client: TestClient, name: str) -> dict[str, float]:
    """A measurement's values by their labels."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {" ".join(each.labels.values()): each.value for one in families for each in one.samples if each.name == name}


def test_the_outbox_tells_its_age_until_it_is_worked_off(client: TestClient, plane: Plane, run: dict[str, Any]) -> None:
    assert run["phase"] == "queued"
    object.__setattr__(plane.context, "clock", lambda: time.time() + 100)
    assert 100 <= sample(client, "teragpt_outbox_age_seconds")[""] < 200
    plane.reconciler.step()
    assert sample(client, "teragpt_outbox_age_seconds")[""] == 0


def test_the_lag_is_told_only_where_runs_are_reconciled(client: TestClient) -> None:
    measurements: Measurements = client.app.state.measurements  # type: ignore[attr-defined]
    assert sample(client, "teragpt_reconcile_lag_seconds") == {}
    with measurements.look():
        pass
    assert 0 <= sample(client, "teragpt_reconcile_lag_seconds")[""] < 60
    measurements.rests()
    assert sample(client, "teragpt_reconcile_lag_seconds") == {}


def test_watches_begun_anew_are_counted(client: TestClient) -> None:
    before = sample(client, "teragpt_watch_restarts_total").get("/a", 0)
    RESTARTS.add("/a")
    assert sample(client, "teragpt_watch_restarts_total")["/a"] == before + 1
