"""What every kind of object asks for its pods."""

from __future__ import annotations

import json
from typing import Any

import pytest

from controlplane.domain.placement import Kind, Placement, Rdma, Scheduling, SecretRef, Toleration
from controlplane.render import identity_of, read, render, secret_of
from tests.controlplane.render.attempts import KINDS, attempt, container, pod, template, variables

CANARY = "canary-5c1e9d"
HOST_NAME = "kubernetes.io/hostname"
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_a_pod_says_whose_it_is_and_so_does_its_object(kind: Kind) -> None:
    manifest = render(attempt(kind=kind))
    assert manifest["kind"] == kind
    assert manifest["metadata"]["namespace"] == "lm"
    assert manifest["metadata"]["annotations"]["teragpt.io/spec-hash"] == "abc"
    for labels in (manifest["metadata"]["labels"], template(manifest)["metadata"]["labels"]):
        assert labels == {
            "team": "lm",
            "app.kubernetes.io/managed-by": "teragpt",
            "teragpt.io/run-id": "run_01JD2K7QABCDEFGH",
            "teragpt.io/attempt": "1",
        }
    assert identity_of(manifest) == ("run_01JD2K7QABCDEFGH", 1, "abc")


@every_kind
def test_every_kind_reads_back_unchanged(kind: Kind) -> None:
    manifest = render(attempt(kind=kind))
    assert read(json.loads(json.dumps(manifest))).manifest() == manifest


def test_what_is_no_kind_of_ours_is_refused() -> None:
    with pytest.raises(ValueError, match="got 'MPIJob'; allowed: PyTorchJob, Job, TrainJob"):
        read({"kind": "MPIJob"})


@every_kind
def test_pods_are_restricted_and_write_to_scratch_memory_and_claims_alone(kind: Kind) -> None:
    made = pod(render(attempt(kind=kind)))
    assert made["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "fsGroup": 10001,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    (container,) = made["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]} == {
        "dshm": "/dev/shm",  # noqa: S108
        "tmp": "/tmp",  # noqa: S108
        "claim-0": "/mnt/teragpt/datasets",
        "claim-1": "/mnt/teragpt/team.runs",
        "teragpt-token": "/var/run/secrets/teragpt",
    }
    assert made["volumes"][:4] == [
        {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": "1536Mi"}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "claim-0", "persistentVolumeClaim": {"claimName": "datasets"}},
        {"name": "claim-1", "persistentVolumeClaim": {"claimName": "team.runs"}},
    ]


@every_kind
def test_a_pod_shows_a_token_that_the_kubelet_keeps_fresh_and_no_secret(kind: Kind) -> None:
    made = attempt(kind=kind, run_token=CANARY)
    manifest = render(made)
    assert pod(manifest)["volumes"][-1] == {
        "name": "teragpt-token",
        "projected": {
            "sources": [{"serviceAccountToken": {"path": "token", "audience": "teragpt", "expirationSeconds": 3600}}]
        },
    }
    assert variables(manifest)["TERAGPT_RUN_TOKEN_FILE"] == "/var/run/secrets/teragpt/token"
    assert "TERAGPT_RUN_TOKEN" not in variables(manifest)
    assert secret_of(made) == {}
    assert CANARY not in json.dumps(manifest) + repr(made)


@every_kind
def test_without_an_audience_the_token_comes_from_the_objects_secret(kind: Kind) -> None:
    made = attempt(kind=kind, audience=None, run_token=CANARY)
    manifest = render(made)
    assert variables(manifest)["TERAGPT_RUN_TOKEN"] == {"secretKeyRef": {"name": made.name, "key": "token"}}
    assert secret_of(made) == {"token": CANARY}
    assert CANARY not in json.dumps(manifest)


@every_kind
def test_a_variable_from_a_secret_is_a_reference(kind: Kind) -> None:
    manifest = render(attempt(kind=kind, secrets={"HF_TOKEN": SecretRef(name="hf", key="token")}))
    assert variables(manifest)["HF_TOKEN"] == {"secretKeyRef": {"name": "hf", "key": "token"}}
    with pytest.raises(ValueError, match="TERAGPT_RUN_ID"):
        render(attempt(kind=kind, secrets={"TERAGPT_RUN_ID": SecretRef(name="hf", key="token")}))


@every_kind
def test_devices_are_requested_by_the_names_that_their_plugins_gave_them(kind: Kind) -> None:
    placement = Placement(gpu_resource="nvidia.com/mig-1g.10gb", rdma=Rdma(resource="rdma/ib", count=8))
    resources = container(render(attempt(kind=kind, gpus_per_node=2, placement=placement)))["resources"]
    assert resources["limits"] == {"memory": "3Gi", "nvidia.com/mig-1g.10gb": "2", "rdma/ib": "8"}
    assert resources["requests"] == {"cpu": "500m", **resources["limits"]}


@every_kind
def test_cpus_are_a_share_but_no_wall_since_all_wait_for_a_rank_that_is_throttled(kind: Kind) -> None:
    resources = container(render(attempt(kind=kind)))["resources"]
    assert ("cpu" in resources["requests"], "cpu" in resources["limits"]) == (True, False)


@every_kind
def test_what_is_asked_of_nodes_and_images_reaches_the_pod(kind: Kind) -> None:
    placement = Placement(
        shm="64Gi",
        node_selector={"pool": "gpu"},
        tolerations=[
            Toleration(key="gpu", operator="Exists", effect="NoSchedule"),
            Toleration(key="spot", value="yes", effect="NoExecute", toleration_seconds=30),
        ],
        image_pull_secrets=["registry"],
    )
    made = pod(render(attempt(kind=kind, placement=placement)))
    assert made["volumes"][0]["emptyDir"]["sizeLimit"] == "64Gi"
    assert made["nodeSelector"] == {"pool": "gpu"}
    assert made["tolerations"] == [
        {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "spot", "operator": "Equal", "value": "yes", "effect": "NoExecute", "tolerationSeconds": 30},
    ]
    assert made["imagePullSecrets"] == [{"name": "registry"}]


def needs(manifest: dict[str, Any]) -> list[list[tuple[str, str, tuple[str, ...]]]]:
    """What nodes must meet: any of these, each in full."""
    required = pod(manifest)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return [
        [(one["key"], one["operator"], tuple(one.get("values", ()))) for one in term["matchExpressions"]]
        for term in required["nodeSelectorTerms"]
    ]


@every_kind
@pytest.mark.parametrize(
    ("resource", "label"), [("nvidia.com/gpu", "nvidia.com/gpu.product"), ("amd.com/gpu", "amd.com/gpu.product-name")]
)
def test_a_gpu_type_and_nodes_to_avoid_are_required_of_nodes(kind: Kind, resource: str, label: str) -> None:
    placement = Placement(gpu="H100", gpu_resource=resource)
    manifest = render(attempt(kind=kind, placement=placement, avoid_nodes=("a", "b")))
    assert needs(manifest) == [[(label, "In", ("H100",)), (HOST_NAME, "NotIn", ("a", "b"))]]
    assert "affinity" not in pod(render(attempt(kind=kind)))


@every_kind
def test_a_patch_cannot_lift_what_is_required_of_nodes(kind: Kind) -> None:
    terms = [{"matchExpressions": [{"key": "zone", "operator": "Exists"}]}, {"matchFields": []}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    overrides = {"spec": {"affinity": {"nodeAffinity": required}}}
    manifest = render(attempt(kind=kind, avoid_nodes=("a",), pod_overrides=overrides))
    avoided = (HOST_NAME, "NotIn", ("a",))
    assert needs(manifest) == [[("zone", "Exists", ()), avoided], [avoided]]


@every_kind
def test_a_queue_takes_the_object_in_hand_and_brings_its_own_priorities(kind: Kind) -> None:
    manifest = render(attempt(kind=kind, scheduling=Scheduling(queue="research", priority="high")))
    labels = manifest["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "research"
    assert labels["kueue.x-k8s.io/priority-class"] == "high"
    assert "high" not in json.dumps(manifest["spec"])
    assert "suspend" not in json.dumps(manifest)


@pytest.mark.parametrize("kind", ["PyTorchJob", "Job"])
def test_without_a_queue_a_priority_is_the_pods_class(kind: Kind) -> None:
    manifest = render(attempt(kind=kind, scheduling=Scheduling(priority="high")))
    assert pod(manifest)["priorityClassName"] == "high"
    assert not any("kueue" in label for label in manifest["metadata"]["labels"])


@pytest.mark.parametrize(("kind", "place"), [("PyTorchJob", "runPolicy"), ("Job", None)])
def test_an_ended_object_goes_after_its_time(kind: Kind, place: str | None) -> None:
    spec = render(attempt(kind=kind, ttl_after_finish_s=3600))["spec"]
    assert (spec[place] if place else spec)["ttlSecondsAfterFinished"] == 3600
