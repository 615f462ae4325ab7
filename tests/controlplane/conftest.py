from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.domain.spec import parse_spec
from controlplane.services import runs
from controlplane.services.context import Context
from controlplane.services.views import RunView
from controlplane.store.store import Store
from tests.controlplane.memory_cluster import Clock, MemoryCluster


@pytest.fixture
def memory() -> MemoryCluster:
    return MemoryCluster()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "home")
    yield opened
    opened.close()


@pytest.fixture
def context(store: Store, memory: MemoryCluster, clock: Clock) -> Context:
    return Context(store, memory, store.home, "http://127.0.0.1:8000", clock=clock)


@pytest.fixture
def run(context: Context) -> RunView:
    """A run of the tiny size, just asked for."""
    return runs.create_run(context, parse_spec({"size": "tiny"}))[0]
