"""All that a spec's compute, scheduling, limits and env ask of Kubernetes, read back from its pods and its manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from controlplane.client import ApiError
from tests.cluster.conftest import Cluster, Namespace
from tests.cluster.plane import Plane

DEVICE = "rdma/ib"
SHM = "/dev/shm"  # noqa: S108
TOLERATED = {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}


@pytest.fixture
def device(own_cluster: Cluster) -> Iterator[str]:
    """The node says that it has two network devices, as a device plugin would have it say."""

    def has(count: object) -> None:
        patch = {"status": {"capacity": {DEVICE: count}}}
        own_cluster.kubectl("patch", "node", own_cluster.node, "--subresource=status", f"--patch={json.dumps(patch)}")

    has("2")
    yield DEVICE
    has(None)


@pytest.fixture
def priority(cluster: Cluster, furnished: Namespace) -> Iterator[str]:
    """A priority class."""
    name = f"{furnished.name}-high"
    cluster.apply(
        {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": 7}
    )
    yield name
    cluster.kubectl("delete", "priorityclass", name)


def test_all_that_a_spec_asks_of_its_pods_is_there(
    plane: Plane, cluster: Cluster, furnished: Namespace, device: str, priority: str
) -> None:
    furnished.kubectl("create", "secret", "generic", "hub", "--from-literal=token=s3cret-word")
    furnished.kubectl("create", "secret", "docker-registry", "registry", "--docker-username=u", "--docker-password=p")
    spec = {
        "size": "tiny",
        "train": {"steps": 5000},
        "compute": {
            "nodes": 1,
            "processes_per_node": 1,
            "cpus_per_node": 0.3,
            "memory_per_node": 2 << 30,
            "shm": "96Mi",
            "rdma": {"resource": device, "count": 2},
            "node_selector": {"kubernetes.io/hostname": cluster.node},
            "tolerations": [TOLERATED],
            "image_pull_secrets": ["registry"],
        },
        "scheduling": {"priority": priority, "preemptible": True},
        "limits": {"ttl_after_finish_s": 3600, "max_restarts": 2},
        "env": [
            {"name": "PLAIN", "value": "as $(it) is, $HOME"},
            {"name": "HUB_TOKEN", "secret_ref": {"name": "hub", "key": "token"}},
        ],
        "labels": {"team": "research"},
    }
    run = plane.client.create(spec)["id"]
    plane.wait(run, "running")
    (name,) = furnished.pods(run)
    environment = furnished.environment(name)
    mounted = furnished.kubectl("exec", name, "--", "df", "--output=size,fstype", SHM).split()[-2:]
    pod = furnished.read("pod", name)
    asked = pod["spec"]["containers"][0]["resources"]

    assert (environment["PLAIN"], environment["HUB_TOKEN"]) == ("as $(it) is, $HOME", "s3cret-word")
    assert mounted == [str(96 << 10), "tmpfs"]
    assert asked["requests"] == {"cpu": "300m", "memory": "2Gi", device: "2"}
    assert asked["limits"] == {"memory": "2Gi", device: "2"}
    assert pod["spec"]["nodeSelector"] == {"kubernetes.io/hostname": cluster.node}
    assert TOLERATED in pod["spec"]["tolerations"]
    assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    assert (pod["spec"]["priorityClassName"], pod["spec"]["priority"]) == (priority, 7)
    assert pod["metadata"]["labels"]["team"] == "research"
    assert pod["metadata"]["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "true"
    job = furnished.read("pytorchjob", name.removesuffix("-master-0"))
    assert job["spec"]["runPolicy"]["ttlSecondsAfterFinished"] == 3600
    told = json.dumps([plane.client.run(run), plane.client.manifest(run), plane.client.events(run)])
    assert "s3cret-word" not in told + plane.log.read_text()


def test_a_claim_that_one_node_may_write_is_refused_for_several_nodes(plane: Plane, furnished: Namespace) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}
    furnished.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "single"}, "spec": spec})
    asked = {"size": "tiny", "checkpoint": {"uri": "pvc://single/run"}, "compute": {"nodes": 2}}
    with pytest.raises(ApiError, match="/checkpoint/uri") as refused:
        plane.client.create(asked)
    assert refused.value.status == 422
    assert "ReadWriteMany" in str(refused.value)
    assert plane.client.preview({**asked, "compute": {"nodes": 1}})["manifest"]


@pytest.mark.parametrize(
    ("resource", "gpu", "label"),
    [
        ("nvidia.com/gpu", "NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.product"),
        ("amd.com/gpu", "AMD_Instinct_MI300X", "amd.com/gpu.product-name"),
        ("nvidia.com/mig-1g.10gb", "NVIDIA-A100-SXM4-80GB", "nvidia.com/gpu.product"),
    ],
)
@pytest.mark.parametrize("kind", ["PyTorchJob", "Job"])
def test_a_gpu_is_asked_for_by_its_resource_and_its_type_and_the_api_server_takes_it(
    plane: Plane, furnished: Namespace, kind: str, resource: str, gpu: str, label: str
) -> None:
    compute = {"nodes": 2, "gpus_per_node": 4, "gpu_resource": resource, "gpu": gpu}
    told = plane.client.preview({"size": "tiny", "compute": compute, "kubernetes": {"kind": kind}})
    manifest = told["manifest"]
    templates: list[Any] = [role["template"] for role in manifest["spec"].get("pytorchReplicaSpecs", {}).values()] or [
        manifest["spec"]["template"]
    ]
    for template in templates:
        assert template["spec"]["containers"][0]["resources"]["limits"][resource] == "4"
        needs = template["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert {"key": label, "operator": "In", "values": [gpu]} in needs["nodeSelectorTerms"][0]["matchExpressions"]
    furnished.kubectl("create", "--dry-run=server", "--validate=strict", "--filename=-", stdin=json.dumps(manifest))
