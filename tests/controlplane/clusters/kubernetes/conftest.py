from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.clusters.kubernetes import KubernetesCluster, informer
from controlplane.clusters.kubernetes import cluster as module
from controlplane.clusters.kubernetes.connection import Connection
from tests.controlplane.clusters.kubernetes.hands import Hands, Open, eventually, kubeconfig, watched
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
    made = watched(name="k", kubeconfig=config, namespace=None, archive=tmp_path / "logs", instance="us")
    eventually(lambda: made.observe() is not None)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informer, "BACKOFF_S", (0.01, 0.05))
    monkeypatch.setattr(module, "LOOK_SOON_S", 0.02)
    monkeypatch.setattr(module, "KEEP_S", 0.01)


@pytest.fixture
def open_cluster(config: Path, tmp_path: Path) -> Iterator[Open]:
    """Backends that are closed again; they have not seen anything yet."""
    made: list[KubernetesCluster] = []

    def open_cluster(instance: str = "us", kind: str = "auto", config: Path = config) -> KubernetesCluster:
        archive = tmp_path / f"logs-{len(made)}"
        made.append(watched(name="k", kubeconfig=config, namespace=None, archive=archive, instance=instance, kind=kind))
        return made[-1]

    yield open_cluster
    for one in made:
        one.close()
