from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from controlplane.clusters.base import Caller, Unavailable
from controlplane.clusters.kubernetes import KubernetesCluster, Namespaces
from controlplane.execution import cluster_of
from controlplane.settings import build
from controlplane.store.store import Store
from tests.controlplane.clusters.kubernetes.hands import eventually, manifest, watched
from tests.controlplane.clusters.kubernetes.server import ApiServer
from tests.controlplane.clusters.kubernetes.test_identity import asked, review
from tests.controlplane.postgres import ON_SQLITE

HERE, THERE = "team-a", "team-b"


@pytest.fixture
def both(config: Path, tmp_path: Path) -> Iterator[Namespaces]:
    """Two namespaces that have been seen once."""
    given: dict[str, Any] = {"name": "k", "kubeconfig": config, "archive": tmp_path / "logs", "instance": "us"}
    first = watched(namespace=HERE, others=(THERE,), **given)
    made = Namespaces(first, {THERE: watched(namespace=THERE, **given)})
    eventually(lambda: made.observe() == [])
    yield made
    made.close()


def names(cluster: Namespaces) -> set[str]:
    return {job.name for job in cluster.observe()}


def created(server: ApiServer) -> list[str]:
    posts = (request.path for request in server.requests if request.method == "POST" and "jobs" in request.path)
    return [path.split("/namespaces/")[1].split("/")[0] for path in posts]


def test_each_object_is_made_where_it_says_and_all_are_seen(server: ApiServer, both: Namespaces) -> None:
    assert both.traits().namespaces == (HERE, THERE)
    both.create(manifest("run-1"))
    both.create(manifest("run-2", run="run_2", namespace=THERE))
    both.dry_run(manifest("run-3", run="run_3", namespace=THERE))
    assert created(server) == [HERE, THERE, THERE, THERE], "of a dry run its pods too"
    assert names(both) == {"run-1", "run-2"}


def ending(cluster: Namespaces) -> set[str]:
    return {job.name for job in cluster.observe() if job.deleting}


def test_one_is_ended_where_it_is(both: Namespaces) -> None:
    both.create(manifest("run-1"))
    uid = both.create(manifest("run-2", run="run_2", namespace=THERE))
    both.delete("run-2", "another's")
    assert not ending(both)
    both.delete("run-2", uid)
    eventually(lambda: ending(both) == {"run-2"})


def test_one_that_no_watch_has_shown_is_looked_for_in_all_of_them(
    both: Namespaces, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    both.create(manifest("run-9", namespace=THERE))
    both.forget("run-9")
    assert names(both) == {"run-9"}, "it is there: nothing of it goes"
    monkeypatch.setattr(KubernetesCluster, "shows", lambda _, name: not name)
    both.delete("run-9")
    eventually(lambda: ending(both) == {"run-9"})
    assert [request.path.split("/")[5] for request in server.requests if request.method == "DELETE"] == [THERE]


def test_a_run_of_a_namespace_that_was_taken_away_waits_for_it(server: ApiServer, both: Namespaces) -> None:
    for call in (both.create, both.dry_run):
        with pytest.raises(Unavailable, match=r"elsewhere is none of the installation.s .team-a, team-b.: add it to"):
            call(manifest("run-1", namespace="elsewhere"))
    assert created(server) == []


@pytest.mark.parametrize("namespace", [HERE, THERE])
def test_pods_of_each_namespace_prove_who_they_are(server: ApiServer, both: Namespaces, namespace: str) -> None:
    server.tokens["good"] = review(username=f"system:serviceaccount:{namespace}:default")
    assert both.authenticate("good") == Caller("run-1-master-0", "u-1")
    assert asked(server) == 1


def test_nothing_is_taken_for_gone_while_one_of_them_cannot_be_seen(
    server: ApiServer, config: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"name": "k", "kubeconfig": config, "archive": tmp_path / "logs", "instance": "us"}
    first = watched(namespace=HERE, **given)
    eventually(lambda: first.observe() == [])
    server.forbidden = {("list", "pods")}
    half = Namespaces(first, {THERE: watched(namespace=THERE, **given)})
    try:
        with pytest.raises(Unavailable):
            half.observe()
        told = {check.name for check in half.checks() if not check.ok}
        assert "may list pods" in told
    finally:
        half.close()


@ON_SQLITE
@pytest.mark.parametrize("given", [(HERE,), (HERE, THERE)], ids=["one", "two"])
def test_the_settings_say_which_they_are(config: Path, tmp_path: Path, store: Store, given: tuple[str, ...]) -> None:
    asked = {"cluster": "kubernetes", "kubeconfig": str(config), "home": str(tmp_path), "namespace": ",".join(given)}
    with closing(cluster_of(build(asked, {}), store, "us")) as cluster:
        assert cluster.traits().namespaces == given
        assert isinstance(cluster, Namespaces) == (len(given) > 1)
