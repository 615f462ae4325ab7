from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.clusters.kubernetes import KubernetesCluster
from controlplane.clusters.kubernetes.connection import Connection
from tests.controlplane.clusters.kubernetes.hands import Hands, eventually, kubeconfig
from tests.controlplane.clusters.kubernetes.server import ApiServer, api_server


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with api_server() as server:
        yield server


@pytest.fixture
def config(server: ApiServer, tmp_path: Path) -> Path:
    return kubeconfig(tmp_path / "kubeconfig", server.url)


@pytest.fixture
def connection(config: Path) -> Iterator[Connection]:
    made = Connection(config, None)
    yield made
    made.close()


@pytest.fixture
def hands(connection: Connection) -> Hands:
    return Hands(connection)


@pytest.fixture
def cluster(config: Path, tmp_path: Path) -> Iterator[KubernetesCluster]:
    """A backend that has seen everything once."""
    made = KubernetesCluster(name="k", kubeconfig=config, namespace=None, archive=tmp_path / "logs", instance="us")
    eventually(lambda: made.observe() is not None)
    yield made
    made.close()
