"""The Kubernetes backend on a whole cluster: real causes, real logs. The pods are shells: each takes seconds."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.clusters.base import Manifest, ObservedPod, Unavailable
from controlplane.clusters.kubernetes import KubernetesCluster
from tests.cluster.conftest import Cluster, Namespace
from tests.cluster.layout import Failed
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
    return tuple(observed(backend, of["metadata"]["name"]).pods)


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
    # the master is last: with its end the operator stops whoever still runs
    said = "i=0; while [ $i -lt 3000 ]; do echo $i of $RANK; i=$((i+1)); done; sleep $((10 - 8 * RANK)); printf end"
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
    (pod,) = ended(backend, failed)
    assert (pod.reason, pod.exit_code, pod.termination) == ("Error", 7, told)
    assert pod.started_at is not None
    assert pod.finished_at is not None
    for _ in range(3):  # containerd hears of it too late at times, and tells the kubelet of an error
        (pod,) = ended(backend, run("tail /dev/zero"))
        assert (pod.exit_code, pod.signal) == (137, "SIGKILL")
        if pod.reason == "OOMKilled":
            break
    assert pod.reason == "OOMKilled"
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


@pytest.mark.parametrize("kind", ["PyTorchJob", "Job"])
def test_waiting_for_a_limit_range(backend: KubernetesCluster, namespace: Namespace, run: Run, kind: str) -> None:
    spec = {"limits": [{"type": "Container", "max": {"cpu": "1"}}]}
    namespace.apply({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small"}, "spec": spec})
    message = waits(backend, run("true", cpus_per_node=2, kind=kind), "LimitRange")
    assert 'Invalid value: "2": must be less than or equal to cpu limit of 1' in message


@pytest.mark.alone
def test_waiting_for_a_node_without_the_taint(backend: KubernetesCluster, cluster: Cluster, run: Run) -> None:
    taint = "teragpt.test/reserved=others:NoSchedule"
    cluster.kubectl("taint", "node", cluster.node, taint)
    try:
        one = run("true")
        eventually(lambda: "kept for others by the taint" in waits(backend, one, "Unschedulable"), WAIT_S)
        message = waits(backend, one, "Unschedulable")
    finally:
        cluster.kubectl("taint", "node", cluster.node, f"{taint}-")
    assert "teragpt.test/reserved" in message
    assert "the scheduler says: 0/" in message
    assert [pod.phase for pod in ended(backend, one)] == ["Succeeded"]


@pytest.mark.parametrize("kind", ["PyTorchJob", "Job"])
def test_pods_that_the_namespaces_pod_security_refuses(backend: KubernetesCluster, cluster: Cluster, kind: str) -> None:
    one = prepared(cluster, kind=kind)
    for container in containers(one):
        del container["securityContext"]
    backend.create(one)
    message = waits(backend, one, "PodSecurity")
    assert message.startswith("the namespace's Pod Security refuses its pods: ")
    assert "allowPrivilegeEscalation" in message


def test_pods_that_an_admission_rule_of_the_cluster_refuses(
    backend: KubernetesCluster, cluster: Cluster, namespace: Namespace
) -> None:
    named = {"metadata": {"name": namespace.name}}
    group = {"apiVersion": "admissionregistration.k8s.io/v1"}
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    where = {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}}
    policy = {
        "matchConstraints": {"resourceRules": [rule], "namespaceSelector": where},
        "validations": [{"expression": "false", "message": "no pods on a Sunday"}],
    }
    binding = {"policyName": namespace.name, "validationActions": ["Deny"]}
    cluster.apply(
        {**group, "kind": "ValidatingAdmissionPolicy", **named, "spec": policy},
        {**group, "kind": "ValidatingAdmissionPolicyBinding", **named, "spec": binding},
    )
    try:
        eventually(lambda: refused(namespace), WAIT_S)
        one = prepared(cluster)
        backend.create(one)
        message = waits(backend, one, "AdmissionDenied")
    finally:
        for kind in ("validatingadmissionpolicybinding", "validatingadmissionpolicy"):
            cluster.kubectl("delete", kind, namespace.name)
    assert "no pods on a Sunday" in message


def test_waiting_for_a_claim_that_nothing_binds(backend: KubernetesCluster, namespace: Namespace, run: Run) -> None:
    storage = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "unbound"}}
    namespace.apply({**claim, "spec": {**storage, "storageClassName": "nobody"}})
    message = waits(backend, run("true", claims=("unbound",)), "VolumeNotBound")
    assert message.startswith("a volume is not ready: unbound immediate PersistentVolumeClaims")


def test_a_worker_waits_for_its_master_in_the_operators_init_container(
    backend: KubernetesCluster, cluster: Cluster, run: Run
) -> None:
    image = f"{cluster.registry or 'registry.invalid'}/nobody/nothing:1"
    message = waits(backend, run("true", nodes=2, image=image), "InitWaitingForMaster")
    assert message == "init-pytorch waits until the master's name can be looked up"


@pytest.fixture
def asleep(own_cluster: Cluster) -> Iterator[Callable[[bool], None]]:
    """The training operator scaled to nothing; called, its webhook is to be asked all the same, or not."""
    deployment = ("deployment/training-operator", "--namespace=kubeflow")
    webhook = "validatingwebhookconfiguration/validator.training-operator.kubeflow.org"
    before = own_cluster.read(webhook)

    def asked(needed: bool) -> None:
        changed = [{**one, "failurePolicy": "Fail" if needed else "Ignore"} for one in before["webhooks"]]
        own_cluster.kubectl("patch", webhook, "--type=merge", f"--patch={json.dumps({'webhooks': changed})}")

    own_cluster.kubectl("scale", *deployment, "--replicas=0")
    own_cluster.kubectl("wait", "pods", "--all", "--for=delete", "--namespace=kubeflow", "--timeout=60s", timeout_s=70)
    yield asked
    own_cluster.kubectl("scale", *deployment, "--replicas=1")
    own_cluster.kubectl("wait", *deployment, "--for=condition=Available", "--timeout=120s", timeout_s=130)
    asked(True)


@pytest.mark.alone
def test_an_operator_that_sleeps_is_said_and_waited_for(
    backend: KubernetesCluster, cluster: Cluster, own_cluster: Cluster, asleep: Callable[[bool], None], run: Run
) -> None:
    with pytest.raises(Unavailable, match="failed calling webhook"):
        backend.create(prepared(cluster))
    asleep(False)
    one = eventually(lambda: run("true"), WAIT_S)
    message = waits(backend, one, "OperatorAbsent")
    assert "does the training operator run?" in message
    own_cluster.kubectl("scale", "deployment/training-operator", "--namespace=kubeflow", "--replicas=1")
    assert [pod.phase for pod in ended(backend, one)] == ["Succeeded"]


def prepared(cluster: Cluster, **more: Any) -> Manifest:
    """An attempt that would end well at once; not made yet."""
    name = f"run-{uuid.uuid4().hex[:8]}-1"
    usual = {"image": cluster.shell, "command": ("true",), **SMALL}
    return manifest(name, run=f"run_{name}", **{**usual, **more})


def containers(one: Manifest) -> list[dict[str, Any]]:
    """Every container of its pods."""
    spec = one["spec"]
    templates = [role["template"] for role in spec.get("pytorchReplicaSpecs", {}).values()] or [spec["template"]]
    return [container for template in templates for container in template["spec"]["containers"]]


def refused(namespace: Namespace) -> bool:
    """Whether a rule that was just made is in force already."""
    try:
        namespace.start(f"probe-{uuid.uuid4().hex[:8]}", "true")
    except Failed as failure:
        return "no pods on a Sunday" in str(failure)
    return False
