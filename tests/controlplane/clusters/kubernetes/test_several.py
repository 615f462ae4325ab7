"""Clusters of a file: each by its own kubeconfig and context; one that cannot be used is named before a start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.clusters.base import Unavailable
from controlplane.domain.clusters import FurtherCluster
from controlplane.execution import StartError, executing, further_of
from controlplane.settings import Settings, build
from controlplane.store.store import Store
from tests.controlplane.clusters.kubernetes.hands import eventually, kubeconfig, manifest
from tests.controlplane.clusters.kubernetes.server import ApiServer, api_server
from tests.controlplane.postgres import ON_SQLITE

OWN, EAST = "team-a", "team-b"


@pytest.fixture
def east() -> Iterator[ApiServer]:
    """Another cluster's API server."""
    with api_server() as server:
        yield server


def settings(tmp_path: Path, config: Path, **east: Any) -> Settings:
    file = tmp_path / "clusters.json"
    file.write_text(json.dumps({"clusters": [{"name": "east", **east}]}))
    asked = {"cluster": "kubernetes", "kubeconfig": str(config), "home": str(tmp_path), "namespace": OWN}
    return build({**asked, "clusters": str(file)}, {})


def of(given: Settings) -> list[FurtherCluster]:
    return [*further_of(given.execution)]


@ON_SQLITE
def test_each_cluster_is_reached_by_its_own_kubeconfig_and_context(
    server: ApiServer, east: ApiServer, config: Path, tmp_path: Path, store: Store
) -> None:
    file = kubeconfig(tmp_path / "east", server.url)
    written = json.loads(file.read_text())
    written["clusters"].append({"name": "there", "cluster": {"server": east.url}})
    written["contexts"].append({"name": "me@there", "context": {"cluster": "there", "user": "me", "namespace": EAST}})
    file.write_text(json.dumps(written))
    given = settings(tmp_path, config, kubeconfig=str(file), context="me@there")
    with executing(given, of(given), store, "us") as clusters:
        assert [(name, one.name, one.traits().namespace) for name, one in clusters.items()] == [
            ("", "kubernetes", OWN),
            ("east", "east", EAST),
        ]
        for one in clusters.values():
            one.watch(lambda: None)
        clusters["east"].create(manifest("run-1", namespace=EAST))
        eventually(lambda: [job.name for job in clusters["east"].observe()] == ["run-1"])
        eventually(lambda: clusters[""].observe() == [])
    assert [request.method for request in server.requests if "jobs" in request.path].count("POST") == 0


@ON_SQLITE
def test_one_that_cannot_be_used_is_named(config: Path, tmp_path: Path, store: Store) -> None:
    for wrong in ({"kubeconfig": "/nowhere"}, {"kubeconfig": str(config), "context": "gone"}):
        given = settings(tmp_path, config, **wrong)
        with (
            pytest.raises(Unavailable, match="the east cluster cannot be used"),
            executing(given, of(given), store, "us"),
        ):
            pass


def test_a_bad_file_is_named(config: Path, tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"--clusters: .*clusters\.json: /clusters/0/storag"):
        of(settings(tmp_path, config, storag="s3://x"))
    given = settings(tmp_path, config)
    Path(given.execution.clusters).write_text('{"clusters": [{"name": "kubernetes"}]}')
    with pytest.raises(StartError, match="'kubernetes' is the name of the installation's own cluster"):
        of(given)
    Path(given.execution.clusters).write_text("[")
    with pytest.raises(StartError, match="is no readable JSON"):
        of(given)
