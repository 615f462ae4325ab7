"""Whose objects, and of which kinds."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from controlplane.clusters.base import Unavailable
from controlplane.clusters.kubernetes import KubernetesCluster
from controlplane.clusters.kubernetes import cluster as module
from controlplane.clusters.kubernetes.connection import Connection
from controlplane.clusters.kubernetes.remembered import Remembered
from controlplane.clusters.shelf import Folder
from tests.controlplane.clusters.kubernetes.hands import Hands, Open, eventually, kubeconfig, manifest, watched
from tests.controlplane.clusters.kubernetes.server import Answer, ApiServer

JOBS = "/pytorchjobs$"


def test_another_installations_objects_are_left_alone(
    hands: Hands, cluster: KubernetesCluster, open_cluster: Open
) -> None:
    one = manifest("run-1")
    cluster.create(one)
    hands.make_pods(one, [0])
    other = open_cluster("them")
    eventually(lambda: other.observe() == [])
    assert [job.name for job in cluster.observe()] == ["run-1"]


def test_kinds_are_found_out_with_their_reasons(server: ApiServer, open_cluster: Open) -> None:
    server.absent = {"/apis/trainer.kubeflow.org/v1alpha1"}
    server.forbidden = {("create", "jobs")}
    cluster = open_cluster()
    eventually(lambda: cluster.observe() == [])
    traits = cluster.traits()
    assert traits.kinds == ("PyTorchJob",)
    assert traits.reasons == {
        "PyTorchJob": "kubeflow.org/v1 is served here, and the control plane may use it",
        "TrainJob": "this cluster does not serve trainer.kubeflow.org/v1alpha1 TrainJob",
        "Job": "the control plane may not create jobs in default",
    }
    assert (traits.namespace, traits.audience, traits.shared_folders) == ("default", "teragpt", False)


@pytest.mark.parametrize(("field", "usable"), [("podTemplateOverrides", False), ("runtimePatches", True)])
def test_a_trainer_that_is_too_old_for_our_train_jobs_is_told_apart(
    server: ApiServer, open_cluster: Open, field: str, usable: bool
) -> None:
    schema = json.dumps({"components": {"schemas": {"TrainJobSpec": {"properties": {field: {}}}}}}).encode()
    server.fail(Answer(body=schema, headers={"content-type": "application/json"}), path="^/openapi/v3/", times=99)
    cluster = open_cluster()
    eventually(lambda: cluster.observe() == [])
    assert ("TrainJob" in cluster.traits().kinds) == usable
    assert ("older than 2.2" in cluster.traits().reasons["TrainJob"]) != usable


def test_the_kind_that_is_asked_for_comes_first_even_if_it_is_not_there(server: ApiServer, open_cluster: Open) -> None:
    server.absent = {"/apis/trainer.kubeflow.org/v1alpha1"}
    cluster = open_cluster(kind="TrainJob")
    eventually(lambda: cluster.observe() == [])
    assert cluster.traits().kinds == ("TrainJob", "PyTorchJob", "Job")
    assert cluster.traits().reasons["TrainJob"].startswith("asked for by the installation; this cluster does not")
    with pytest.raises(Unavailable, match=r"no trainer\.kubeflow\.org"):
        cluster.create(manifest("run-1", kind="TrainJob"))


def test_a_kind_that_comes_later_is_found_and_one_that_goes_is_left(
    server: ApiServer, open_cluster: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.02)
    server.absent = {"/apis/kubeflow.org/v1"}
    cluster = open_cluster()
    eventually(lambda: cluster.traits().kinds == ("TrainJob", "Job"))
    server.absent = set()
    eventually(lambda: cluster.traits().kinds == ("PyTorchJob", "TrainJob", "Job"))
    eventually(lambda: cluster.observe() == [])
    cluster.create(manifest("run-1"))
    assert [job.name for job in cluster.observe()] == ["run-1"]
    server.absent = {"/apis/kubeflow.org/v1"}
    server.cut_watches()
    eventually(lambda: cluster.traits().kinds == ("TrainJob", "Job"))
    asked = len(server.requests)
    eventually(lambda: len(server.requests) > asked + 50)
    with contextlib.suppress(Unavailable):  # a server that has just started may not know its kinds yet
        assert [job.name for job in cluster.observe()] == ["run-1"]
    monkeypatch.setattr(module, "VANISHED_S", 0.0)
    eventually(lambda: cluster.observe() == [])


@pytest.mark.parametrize("how", ["not served yet", "not allowed any more"])
def test_a_control_plane_that_starts_does_not_take_objects_for_gone_whose_kind_it_cannot_see(
    server: ApiServer, config: Path, tmp_path: Path, how: str
) -> None:
    def start() -> KubernetesCluster:
        return watched(name="k", kubeconfig=config, namespace=None, archive=tmp_path, instance="us")

    first = start()
    eventually(lambda: first.observe() == [])
    first.create(manifest("run-1"))
    first.close()
    assert (tmp_path / "kinds-default.json").read_text() == '["PyTorchJob"]'
    if how == "not served yet":
        server.absent = {"/apis/kubeflow.org/v1"}
    else:
        server.forbidden = {("list", "pytorchjobs")}
    second = start()
    try:
        eventually(lambda: second.traits().kinds == ("TrainJob", "Job"))
        with pytest.raises(Unavailable, match="there were objects of kind PyTorchJob, which cannot be seen: "):
            second.observe()
    finally:
        second.close()
    server.absent, server.forbidden = set(), set()
    third = start()
    try:
        assert [job.name for job in eventually(third.observe)] == ["run-1"]
    finally:
        third.close()


def test_a_note_of_kinds_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "kinds-default.json").write_text("{")
    assert Remembered(Folder(tmp_path), "default").kinds == frozenset()
    (tmp_path / "kinds-default.json").write_text('["Job", "CronJob"]')
    assert Remembered(Folder(tmp_path), "default").kinds == frozenset({"Job"})


def test_a_kubeconfig_of_nowhere_starts_and_waits(open_cluster: Open, tmp_path: Path) -> None:
    cluster = open_cluster(config=kubeconfig(tmp_path / "nowhere", "http://127.0.0.1:9"))
    with pytest.raises(Unavailable):
        cluster.observe()
    with pytest.raises(Unavailable):
        cluster.create(manifest("run-1"))
    with pytest.raises(Unavailable):
        cluster.capacity()
    with pytest.raises(Unavailable):
        cluster.access_modes("runs", "default")
    with pytest.raises(Unavailable):
        cluster.authenticate("token")
    (check,) = cluster.checks()
    assert not check.ok
    assert "address" in check.mend


def test_a_claim_is_looked_for_until_the_server_answers_again(server: ApiServer, cluster: KubernetesCluster) -> None:
    path = "/api/v1/default/persistentvolumeclaims"
    server.create(path, {"metadata": {"name": "runs"}, "spec": {"accessModes": ["ReadWriteOnce"]}}, dry=False)
    server.fail(
        Answer(429, b'{"message": "storage is (re)initializing"}', {"Retry-After": "1"}), path="persistentvolumeclaims"
    )
    assert cluster.access_modes("runs", "default") == frozenset({"ReadWriteOnce"})
    assert cluster.access_modes("others", "default") is None


def test_a_closed_connection_does_not_wake_anyone(connection: Connection) -> None:
    connection.close()
    connection.close()
