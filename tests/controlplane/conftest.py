from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.domain.spec import parse_spec
from controlplane.services import runs
from controlplane.services.context import Context
from controlplane.services.views import RunView
from controlplane.store.store import Store
from tests.controlplane import postgres
from tests.controlplane.memory_cluster import Clock, MemoryCluster

SHARED = "shared"


@pytest.fixture
def memory() -> MemoryCluster:
    return MemoryCluster()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[postgres.Server]:
    """A server for this worker's tests, with a database that has this version's tables."""
    if not (postgres.BINARIES or postgres.NEEDED):
        pytest.skip("Postgres is not installed (Debian: apt install postgresql)")
    with postgres.server() as server:
        server.do(f"CREATE DATABASE {SHARED}")
        Store(tmp_path_factory.mktemp("first"), server.url(SHARED)).close()
        yield server


@pytest.fixture
def database(postgres_server: postgres.Server) -> Iterator[str]:
    """The URL of a database with this version's tables, and nothing in them before or after."""
    url = postgres_server.url(SHARED)
    yield url
    postgres.empty(url)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose tables are made, to be copied: making them anew costs each test a tenth of a second."""
    home = tmp_path_factory.mktemp("migrated")
    Store(home).close()
    return home


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path, migrated: Path) -> Iterator[Store]:
    """Whatever rests on the store holds on both databases."""
    home, url = tmp_path / "home", ""
    if request.param == "postgres":
        url = str(request.getfixturevalue("database"))
    else:
        shutil.copytree(migrated, home)
    opened = Store(home, url)
    yield opened
    opened.close()


@pytest.fixture
def context(store: Store, memory: MemoryCluster, clock: Clock) -> Context:
    return Context(store, memory, store.home, "http://127.0.0.1:8000", clock=clock)


@pytest.fixture
def run(context: Context) -> RunView:
    """A run of the tiny size, just asked for."""
    return runs.create_run(context, parse_spec({"size": "tiny"}))[0]
