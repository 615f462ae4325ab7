"""The Kubernetes backend on a whole cluster: real causes, real logs. The pods are shells: each takes seconds."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.clusters.base import Manifest, ObservedPod
from controlplane.clusters.kubernetes import KubernetesCluster
from tests.cluster.conftest import Cluster, Namespace
from tests.controlplane.clusters.kubernetes.hands import eventually, manifest, observed, watched

WAIT_S = 120.0
SMALL = {"cpus_per_node": 0.05, "memory_per_node": 32 << 20}
Run = Callable[..., Manifest]


@pytest.fixture
def backend(cluster: Cluster, namespace: Namespace, tmp_path: Path) -> Iterator[KubernetesCluster]:
    made = watched(name="k", kubeconfig=cluster.kubeconfig, namespace=namespace.name, archive=tmp_path, instance="us")
    eventually(lambda: made.observe() is not None)
    yield made
    made.close()


@pytest.fixture
def run(cluster: Cluster, backend: KubernetesCluster) -> Run:
    """Starts an attempt whose pods run a script; `RANK` is set in it."""

    def run(script: str, **more: Any) -> Manifest:
        name = f"run-{uuid.uuid4().hex[:8]}-1"
        command = ("sh", "-c", script)
        one = manifest(
            name, run=f"run_{name}", **{"image": cluster.shell, "command": command, "grace_s": 5, **SMALL, **more}
        )
        backend.create(one)
        return one

    return run


def pods(backend: KubernetesCluster, of: Manifest) -> tuple[ObservedPod, ...]:
    return observed(backend, of["metadata"]["name"]).pods


def ended(backend: KubernetesCluster, of: Manifest) -> tuple[ObservedPod, ...]:
    """The pods, once all have."""

    def look() -> tuple[ObservedPod, ...]:
        found = pods(backend, of)
        assert all(pod.phase in ("Succeeded", "Failed") for pod in found), found
        return found

    return eventually(look, WAIT_S)


def waits(backend: KubernetesCluster, of: Manifest, reason: str) -> str:
    """The message, once a pod waits for this reason."""

    def look() -> str:
        found = pods(backend, of)
        pod = next((pod for pod in found if pod.reason == reason), None)
        assert pod is not None, found
        return pod.message or ""

    return eventually(look, WAIT_S)


def gone(backend: KubernetesCluster, of: Manifest) -> None:
    """Delete the object and see it through."""
    name = of["metadata"]["name"]

    def delete() -> bool:
        backend.delete(name)  # Unavailable while last lines are read
        return True

    eventually(delete)
    eventually(lambda: name not in [job.name for job in backend.observe()], WAIT_S)


@pytest.mark.parametrize("kind", ["PyTorchJob", "Job"])
def test_what_every_pod_wrote_is_kept_in_full_after_all_is_gone(
    backend: KubernetesCluster, namespace: Namespace, run: Run, kind: str
) -> None:
    said = "i=0; while [ $i -lt 3000 ]; do echo $i of $RANK; i=$((i+1)); done; sleep 2; printf end"
    one = run(said, kind=kind, nodes=2)
    found = ended(backend, one)
    assert [(pod.phase, pod.exit_code) for pod in found] == [("Succeeded", 0), ("Succeeded", 0)]
    told = [namespace.kubectl("logs", pod.name) for pod in found] if kind == "Job" else None
    gone(backend, one)
    for rank, pod in enumerate(found):
        kept = backend.logs(one["metadata"]["name"], pod.name).decode()
        assert kept == "".join(f"{number} of {rank}\n" for number in range(3000)) + "end\n"
        assert told is None or told[rank].rstrip("\n") == kept.rstrip("\n")


def test_a_deletion_sends_sigterm_and_keeps_the_last_words(backend: KubernetesCluster, run: Run) -> None:
    one = run("trap 'echo told to stop; exit 143' TERM; echo begun; while :; do sleep 0.1; done")
    name = one["metadata"]["name"]
    eventually(lambda: backend.logs(name, f"{name}-master-0") == b"begun\n", WAIT_S)
    gone(backend, one)
    assert backend.logs(name, f"{name}-master-0") == b"begun\ntold to stop\n"
    backend.forget(name)
    assert backend.logs(name, f"{name}-master-0") == b""


def test_another_control_plane_goes_on_with_a_log(
    backend: KubernetesCluster, cluster: Cluster, namespace: Namespace, run: Run, tmp_path: Path
) -> None:
    one = run("i=0; while [ $i -lt 60 ]; do echo $i; i=$((i+1)); sleep 0.1; done")
    name = one["metadata"]["name"]
    eventually(lambda: backend.logs(name, f"{name}-master-0"), WAIT_S)
    backend.close()
    other = watched(name="k", kubeconfig=cluster.kubeconfig, namespace=namespace.name, archive=tmp_path, instance="us")
    try:
        ended(other, one)
        gone(other, one)
        assert other.logs(name, f"{name}-master-0").decode().split() == [str(number) for number in range(60)]
    finally:
        other.close()


def test_how_a_process_ended(backend: KubernetesCluster, run: Run) -> None:
    told = {"rank": 1, "code": 7, "reason": "DiskFull"}
    failed = run(f"echo '{json.dumps(told)}' > /dev/termination-log; exit 7")
    killed = run("kill -9 $$")
    greedy = run("tail /dev/zero")
    (pod,) = ended(backend, failed)
    assert (pod.reason, pod.exit_code, pod.termination) == ("Error", 7, told)
    assert pod.started_at is not None
    assert pod.finished_at is not None
    (pod,) = ended(backend, greedy)
    assert (pod.reason, pod.exit_code, pod.signal) == ("OOMKilled", 137, "SIGKILL")
    (pod,) = ended(backend, killed)
    assert pod.phase in ("Failed", "Succeeded")  # the first process of a container may ignore itself


def test_waiting_for_more_than_there_is(backend: KubernetesCluster, run: Run) -> None:
    one = run("true", cpus_per_node=1000, memory_per_node=1 << 50)
    message = waits(backend, one, "Unschedulable")
    assert "asks for 1k cpu" in message or "asks for 1000 cpu" in message
    assert "asks for 1Pi memory" in message
    eventually(lambda: "more than any node has" in waits(backend, one, "Unschedulable"))
    eventually(lambda: "on one node would fit:" in waits(backend, one, "Unschedulable"))
    capacity = backend.capacity()
    assert capacity.known
    assert capacity.cpus >= capacity.free_cpus
    assert capacity.memory > capacity.free_memory > 0
    gpu = run("true", gpus_per_node=8)
    assert "nvidia.com/gpu" in waits(backend, gpu, "Unschedulable")


def test_waiting_for_an_image(backend: KubernetesCluster, cluster: Cluster, run: Run) -> None:
    image = f"{cluster.registry or 'registry.invalid'}/nobody/nothing:1"
    message = waits(backend, run("true", image=image), "ImagePullBackOff")
    assert message.startswith(f"image {image} cannot be pulled: ")
    assert "not found" in message or "failed" in message


def test_waiting_for_a_claim_that_is_not_there(backend: KubernetesCluster, run: Run) -> None:
    message = waits(backend, run("true", claims=("nowhere",)), "VolumeNotBound")
    assert message.startswith('a volume is not ready: persistentvolumeclaim "nowhere" not found')


def test_waiting_for_the_quota(backend: KubernetesCluster, namespace: Namespace, run: Run) -> None:
    namespace.kubectl("create", "quota", "team", "--hard=requests.cpu=1")
    message = waits(backend, run("true", cpus_per_node=2), "QuotaExceeded")
    assert message.startswith("the namespace's quota team does not allow its pods: requested: requests.cpu=2")
    message = waits(backend, run("true", cpus_per_node=2, kind="Job"), "QuotaExceeded")
    assert "used: requests.cpu=0, limited: requests.cpu=1" in message
