from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.controlplane.plane import BASE, Plane, opened


@pytest.fixture
def plane(tmp_path: Path, migrated: Path) -> Generator[Plane]:
    with opened(tmp_path / "home", migrated) as plane:
        yield plane


@pytest.fixture
def client(plane: Plane) -> Generator[TestClient]:
    with TestClient(plane.app(), base_url=BASE, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def run(client: TestClient) -> dict[str, Any]:
    """A queued run of the tiny size."""
    reply = client.post("/v1/runs", json={"size": "tiny", "name": "first"})
    assert reply.status_code == 201, reply.text
    made: dict[str, Any] = reply.json()
    return made
