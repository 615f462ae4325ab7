from __future__ import annotations

from typing import Any

import pytest

from controlplane.clusters.base import Check
from controlplane.clusters.kubernetes.checks import look
from controlplane.clusters.kubernetes.connection import Connection
from tests.controlplane.clusters.kubernetes.server import ApiServer, status
from tests.controlplane.clusters.kubernetes.test_nodes import fill, node


def checks(connection: Connection, wanted: str = "auto", claim: str = "") -> dict[str, Check]:
    return {check.name: check for check in look(connection, wanted, claim)}


def deployment(server: ApiServer, name: str, ready: int) -> None:
    raw: dict[str, Any] = {"metadata": {"name": name}, "status": {"readyReplicas": ready}}
    server.create("/apis/apps/v1//deployments", raw, dry=False)


def test_a_cluster_that_has_everything(server: ApiServer, connection: Connection) -> None:
    fill(server)
    deployment(server, "training-operator", 1)
    deployment(server, "kubeflow-trainer-controller-manager", 1)
    storage_class(server, "shared", default=True)
    claim = {"metadata": {"name": "runs"}, "spec": {"accessModes": ["ReadWriteMany"]}, "status": {"phase": "Bound"}}
    server.create("/api/v1/default/persistentvolumeclaims", claim, dry=False)
    found = checks(connection)
    assert [check for check in found.values() if not check.ok or check.mend] == []
    assert found["api server"].detail == f"{server.url}, Kubernetes v1.36.3"
    assert found["operator of PyTorchJob"].detail == "training-operator: 1 ready"
    assert found["storage classes"].detail == "shared; default: shared"
    assert found["claims"].detail == "1 of 1 claims bound; for several nodes: runs"
    assert found["gpus"].detail == "8 nvidia.com/gpu; types: NVIDIA-H100-80GB-HBM3"
    assert found["nodes"].detail == "2 of 3 take pods"


def storage_class(server: ApiServer, name: str, *, default: bool = False) -> None:
    notes = {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}} if default else {}
    server.create("/apis/storage.k8s.io/v1//storageclasses", {"metadata": {"name": name, **notes}}, dry=False)


def test_classes_of_which_none_is_the_default_are_good_for_who_names_one(
    server: ApiServer, connection: Connection
) -> None:
    for name in ("fast", "slow"):
        storage_class(server, name)
    found = checks(connection)["storage classes"]
    assert (found.ok, found.detail) == (True, "fast, slow; default: none")
    assert found.mend.startswith("Mark one as the default, or name one in store.storageClass")


def test_the_claim_of_runs_tells_of_a_missing_class_where_classes_may_not_be_listed(
    server: ApiServer, connection: Connection
) -> None:
    server.forbidden = {("list", name) for name in ("storageclasses", "persistentvolumeclaims")}
    assert "there is none in default" in checks(connection, claim="runs")["claim runs"].detail
    claim = {"metadata": {"name": "runs"}, "spec": {"accessModes": ["ReadWriteOnce"]}, "status": {"phase": "Pending"}}
    server.create("/api/v1/default/persistentvolumeclaims", claim, dry=False)
    about, said = {"kind": "PersistentVolumeClaim", "name": "runs"}, "no storage class is set"
    event = {"metadata": {"name": "runs.1"}, "involvedObject": about, "reason": "FailedBinding", "message": said}
    server.create("/api/v1/default/events", event, dry=False)
    found = checks(connection, claim="runs")["claim runs"]
    assert (found.ok, found.detail) == (False, f"Pending: ReadWriteOnce; no StorageClass; {said}")
    assert found.mend.startswith("Mark a StorageClass as the default, or name one in store.storageClass")


@pytest.mark.parametrize(
    ("phase", "reason", "ok"),
    [
        ("Bound", "ProvisioningSucceeded", True),
        ("Pending", "WaitForFirstConsumer", True),
        ("Pending", "ProvisioningFailed", False),
        ("Lost", "ClaimLost", False),
    ],
)
def test_a_claim_is_good_that_is_bound_or_waits_for_its_first_pod(
    server: ApiServer, connection: Connection, phase: str, reason: str, ok: bool
) -> None:
    spec = {"accessModes": ["ReadWriteMany"], "storageClassName": "shared"}
    raw = {"metadata": {"name": "runs"}, "spec": spec, "status": {"phase": phase}}
    server.create("/api/v1/default/persistentvolumeclaims", raw, dry=False)
    about = {"kind": "PersistentVolumeClaim", "name": "runs"}
    for name, kind, at in (("a", "Older", "2026-01-01T00:00:00Z"), ("b", reason, "2026-01-02T00:00:00Z")):
        event = {"metadata": {"name": name}, "involvedObject": about, "reason": kind, "lastTimestamp": at}
        server.create("/api/v1/default/events", event, dry=False)
    assert checks(connection, claim="runs")["claim runs"].ok is ok


def test_everything_that_lacks_says_how_it_is_mended(server: ApiServer, connection: Connection) -> None:
    server.absent = {"/apis/kubeflow.org/v1"}
    server.forbidden = {("get", "pods/log"), ("create", "tokenreviews"), ("create", "jobs")}
    node(server, "unlabelled", cpu="8", memory="1Gi", nvidia_com__gpu="1")
    found = checks(connection, "PyTorchJob")
    lacking = {name: check.mend for name, check in found.items() if not check.ok}
    assert lacking == {
        "kind PyTorchJob": "Install what serves kubeflow.org/v1, or let TERAGPT_KIND be another kind.",
        "may get pods/log": "Add `get pods/log` to the control plane's Role in default.",
        "tokens of pods": "Bind the control plane's account to the ClusterRole "
        "system:service-account-issuer-discovery, or let it create tokenreviews (rbac.tokenReviews=true).",
        "operator of TrainJob": "Start it: without it a TrainJob gets no pods (kubectl get deployments -A).",
        "storage classes": "Install a provisioner, or bind claims to volumes by hand.",
        "gpus": "Run GPU feature discovery, so that nodes are labelled with their GPU's type.",
    }
    assert found["kind Job"].ok  # it is not the one that is wanted


def test_tokens_need_no_review_where_the_keys_that_sign_them_may_be_read(
    server: ApiServer, connection: Connection
) -> None:
    server.forbidden = {("create", "tokenreviews")}
    lacking = checks(connection)["tokens of pods"]
    assert not lacking.ok
    assert "the API server's keys cannot be read" in lacking.detail
    server.keys = [{"kid": "one", "kty": "RSA"}]
    found = checks(connection)["tokens of pods"]
    assert found.ok
    assert "by the API server's signatures" in found.detail


def test_a_cluster_without_any_kind_lacks_the_one_that_every_cluster_has(
    server: ApiServer, connection: Connection
) -> None:
    server.absent = {"/apis/kubeflow.org/v1", "/apis/trainer.kubeflow.org/v1alpha1"}
    server.forbidden = {("watch", "jobs")}
    found = checks(connection)
    assert not found["kind Job"].ok
    assert found["kind PyTorchJob"].ok


def test_what_may_not_be_looked_at_is_not_held_against_the_cluster(server: ApiServer, connection: Connection) -> None:
    server.forbidden = {("list", name) for name in ("nodes", "deployments", "storageclasses", "persistentvolumeclaims")}
    found = checks(connection)
    assert [check.name for check in found.values() if not check.ok] == []
    assert "capacity is unknown" in found["nodes"].detail


def test_an_account_that_is_unknown_is_said_alone(server: ApiServer, connection: Connection) -> None:
    server.fail(status(401, "Unauthorized", "Unauthorized"), path="/version")
    (check,) = look(connection, "auto")
    assert not check.ok
    assert "kubeconfig or a service account" in check.mend


def test_a_check_that_breaks_is_a_check(server: ApiServer, connection: Connection) -> None:
    server.fail(status(500, "InternalError", "etcd"), path="/storageclasses")
    found = checks(connection)
    assert not found["storage"].ok
    assert "etcd" in found["storage"].detail
    assert found["may list pods"].ok


def pod(server: ApiServer, name: str, **container: Any) -> None:
    labels = {"app.kubernetes.io/managed-by": "teragpt"}
    raw = {"metadata": {"name": name, "labels": labels}, "status": {"containerStatuses": [container]}}
    server.create("/api/v1/default/pods", raw, dry=False)


def test_an_image_that_nodes_cannot_pull_is_named_with_what_the_registry_says(
    server: ApiServer, connection: Connection
) -> None:
    assert "no pod of a run is there to tell" in checks(connection)["images"].detail
    pod(server, "good", image="r.example/trainer:1", imageID="r.example/trainer@sha256:1")
    assert checks(connection)["images"] == Check("images", ok=True, detail="pulled: r.example/trainer:1")
    told = {"reason": "ErrImagePull", "message": "r.example/trainer:2: not found"}
    pod(server, "bad", image="r.example/trainer:2", imageID="", state={"waiting": told})
    found = checks(connection)["images"]
    assert (found.ok, found.detail) == (False, "r.example/trainer:2: r.example/trainer:2: not found")
    assert "imagePullSecrets" in found.mend


def test_dns_is_asked_within_the_cluster_alone(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert "outside of the cluster" in checks(connection)["dns"].detail
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setattr("controlplane.clusters.kubernetes.checks.NAME", "nowhere.invalid")
    found = checks(connection)["dns"]
    assert (found.ok, found.detail.startswith("nowhere.invalid cannot be looked up: ")) == (False, True)
    assert "CoreDNS" in found.mend
    monkeypatch.setattr("controlplane.clusters.kubernetes.checks.NAME", "localhost")
    assert checks(connection)["dns"].ok
