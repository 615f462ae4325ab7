"""A control plane in the test's own process: a real store, the second implementation of the cluster, a real server."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from sqlalchemy import select

from controlplane.api.app import create_app
from controlplane.api.connections import Connection
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

    def __init__(self, home: Path, *, token: str | None = None) -> None:
        self.home = home
        self.store = Store(home)
        self.cluster = MemoryCluster()
        self.reconciler = Reconciler(self.store, self.cluster, site=Site(BASE, "image"))
        self.context = Context(self.store, self.cluster, home, BASE)
        self.settings = Settings(home=home, streams=Streams(heartbeat_s=0.2, poll_s=0.02))
        self.secret = token

    def app(self) -> FastAPI:
        """The API, made anew: one for each server."""
        return create_app(self.context, self.settings, token=self.secret)

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

    def write(self, object_name: str, text: str) -> None:
        """Let an object's first pod write."""
        key = f"{object_name}/{object_name}-master-0"
        self.cluster.written[key] = self.cluster.written.get(key, b"") + text.encode()


@contextmanager
def opened(home: Path, migrated: Path, *, token: str | None = None) -> Generator[Plane]:
    """A control plane in `home`, whose tables are copied from where they are made."""
    shutil.copytree(migrated, home)
    plane = Plane(home, token=token)
    with closing(plane.store):
        yield plane


@contextmanager
def serving(app: FastAPI, port: int = 0, idle_s: int = 5) -> Generator[str]:
    """A real server on loopback; yields its URL."""
    listener = socket.create_server(("127.0.0.1", port), reuse_port=False)
    config = uvicorn.Config(
        app, http=Connection, ws="none", log_config=None, timeout_keep_alive=idle_s, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        app.state.hub.close()
        server.should_exit = True
        thread.join()
