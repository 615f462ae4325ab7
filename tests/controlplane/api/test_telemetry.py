from __future__ import annotations

import logging
from typing import Any

import pytest
from starlette.testclient import TestClient

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
