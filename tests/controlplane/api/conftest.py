"""The API over a real store and the second implementation of the cluster protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import select
from starlette.testclient import TestClient

from controlplane.api.app import create_app
from controlplane.reconcile.outbox import Site
from controlplane.reconcile.reconciler import Reconciler
from controlplane.services import runs
from controlplane.services.context import Context
from controlplane.settings import Settings, Streams
from controlplane.store.store import Store
from controlplane.store.tables import Outbox
from tests.controlplane.memory_cluster import MemoryCluster

BASE = "http://localhost:8000"


class Plane:
    """A control plane whose reconciler looks when a test says so."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = Store(home)
        self.cluster = MemoryCluster()
        self.reconciler = Reconciler(self.store, self.cluster, site=Site(BASE, "image"))
        self.context = Context(self.store, self.cluster, home, BASE)
        self.settings = Settings(home=home, streams=Streams(heartbeat_s=0.2, poll_s=0.02))
        self.app: FastAPI = create_app(self.context, self.settings)

    def start(self, run_id: str) -> str:
        """Bring a queued run to running; returns its object's name."""
        self.reconciler.step()
        name = str(runs.get(self.context, run_id).kubernetes["name"])
        self.cluster.run(name)
        self.reconciler.step()
        return name

    def succeed(self, run_id: str) -> None:
        """Let a running run's only pod end well."""
        self.cluster.end(str(runs.get(self.context, run_id).kubernetes["name"]), 0)
        self.reconciler.step()

    def end(self, run_id: str) -> None:
        """Cancel a queued run for good."""
        runs.cancel_run(self.context, run_id)
        self.reconciler.step()

    def token(self, run_id: str) -> str:
        """The token of a queued run's attempt."""
        with self.store.read() as session:
            return str(session.scalars(select(Outbox.token).where(Outbox.run_id == run_id)).one())


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    plane = Plane(tmp_path / "home")
    yield plane
    plane.store.close()


@pytest.fixture
def client(plane: Plane) -> Iterator[TestClient]:
    with TestClient(plane.app, base_url=BASE, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def run(client: TestClient) -> dict[str, Any]:
    """A queued run of the tiny size."""
    reply = client.post("/v1/runs", json={"size": "tiny", "name": "first"})
    assert reply.status_code == 201, reply.text
    made: dict[str, Any] = reply.json()
    return made
