"""What of a manifest this machine executes, and what it refuses by name."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from controlplane.clusters.base import Rejected
from controlplane.clusters.local import Machine
from controlplane.clusters.local.launch import launch_record, read_job
from controlplane.domain.placement import Placement, Rdma, Scheduling, Toleration
from controlplane.render import pods_of, render
from tests.controlplane.render.attempts import KINDS, attempt

MACHINE = Machine(cpus=8, memory=64 << 30, gpus=("0", "1"))
POD = "spec.pytorchReplicaSpecs.Master.template.spec"


def local(**changes: Any) -> dict[str, Any]:
    """The manifest of an attempt on this machine."""
    return render(attempt(**{"audience": None, "claims": (), "nodes": 1, **changes}))


def refused(manifest: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(Rejected) as caught:
        read_job(manifest, None, MACHINE)
    return {problem.path: problem.allowed for problem in caught.value.problems}


def test_what_is_rendered_for_this_machine_is_executed() -> None:
    manifest = local(nodes=2, gpus_per_node=1, run_token="x")
    job = read_job(json.loads(json.dumps(manifest)), {"token": "x"}, MACHINE)
    assert job.manifest() == manifest


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"audience": "teragpt"}, f"{POD}.volumes[2]"),
        ({"audience": "teragpt"}, f"{POD}.containers[0].volumeMounts[2]"),
        ({"claims": ("runs",)}, f"{POD}.volumes[2]"),
        ({"avoid_nodes": ("a",)}, f"{POD}.affinity"),
        ({"ttl_after_finish_s": 3600}, "spec.runPolicy.ttlSecondsAfterFinished"),
        ({"scheduling": Scheduling(priority="urgent")}, f"{POD}.priorityClassName"),
        ({"placement": Placement(node_selector={"a": "b"})}, f"{POD}.nodeSelector"),
        ({"placement": Placement(tolerations=[Toleration(operator="Exists")])}, f"{POD}.tolerations"),
        ({"placement": Placement(image_pull_secrets=["a"])}, f"{POD}.imagePullSecrets"),
        ({"placement": Placement(rdma=Rdma(resource="rdma/ib"))}, f"{POD}.containers[0].resources.limits.rdma/ib"),
        (
            {"gpus_per_node": 1, "placement": Placement(gpu_resource="amd.com/gpu")},
            f"{POD}.containers[0].resources.limits.amd.com/gpu",
        ),
        ({"pod_overrides": {"spec": {"schedulerName": "mine"}}}, f"{POD}.schedulerName"),
        ({"pod_overrides": {"spec": {"initContainers": [{"name": "a", "image": "b"}]}}}, f"{POD}.initContainers"),
        ({"pod_overrides": {"spec": {"containers": [{"name": "side", "image": "b"}]}}}, f"{POD}.containers[1]"),
        (
            {"pod_overrides": {"spec": {"containers": [{"name": "pytorch", "workingDir": "/x"}]}}},
            f"{POD}.containers[0].workingDir",
        ),
    ],
)
def test_what_this_machine_has_nothing_for_is_refused_by_path(changes: dict[str, Any], path: str) -> None:
    assert path in refused(local(**changes))


def test_both_roles_are_looked_at() -> None:
    there = refused(local(nodes=2, placement=Placement(node_selector={"a": "b"})))
    assert there.keys() == {f"{POD}.nodeSelector", f"{POD.replace('Master', 'Worker')}.nodeSelector"}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "PyTorchJob"])
def test_another_kind_is_refused(kind: str) -> None:
    assert "kind" in refused(local(kind=kind))


def test_a_variable_from_elsewhere_than_the_objects_secret_is_refused() -> None:
    manifest = local()
    field = {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
    spec = manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    spec["containers"][0]["env"].append(field)
    (path,) = refused(manifest)
    assert path.startswith(f"{POD}.containers[0].env[")
    assert path.endswith("].valueFrom")


def test_requests_that_are_no_limits_are_refused() -> None:
    manifest = copy.deepcopy(local())
    spec = manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    spec["containers"][0]["resources"]["requests"]["cpu"] = "100m"
    assert f"{POD}.containers[0].resources.requests" in refused(manifest)


def test_a_manifest_of_an_older_version_is_taken_up_again() -> None:
    manifest = local()
    old = copy.deepcopy(manifest)
    del old["metadata"]["namespace"]
    spec = old["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    spec["securityContext"] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    spec["volumes"] = [{"name": "dshm", "emptyDir": {"medium": "Memory"}}]
    container = spec["containers"][0]
    del container["resources"]["requests"], container["securityContext"]["readOnlyRootFilesystem"]
    container["volumeMounts"] = container["volumeMounts"][:1]
    assert read_job(old, None, MACHINE).metadata.name == manifest["metadata"]["name"]


def test_dollars_arrive_as_they_were_given(tmp_path: Any) -> None:
    command = ("python", "-c", "print('$(MINE) $$ $1')")
    job = read_job(local(env={"MINE": "a$$b$(c)"}, command=command), {}, MACHINE)
    record = launch_record(job, next(pods_of(job)), tmp_path, {}, {}, 20_001)
    assert record["env"]["MINE"] == "a$$b$(c)"
    assert record["argv"][1:] == list(command[1:])


def test_a_pod_of_this_machine_meets_its_peers_on_loopback(tmp_path: Any) -> None:
    job = read_job(local(nodes=2, run_token="s"), {"token": "s"}, MACHINE)
    record = launch_record(job, list(pods_of(job))[1], tmp_path, {"PATH": "/bin"}, {"token": "s"}, 20_001)
    assert record["argv"][1:] == ["-m", "teragpt.launch", "-m", "teragpt.train"]
    env = record["env"]
    assert (env["MASTER_ADDR"], env["MASTER_PORT"], env["RANK"], env["PET_NNODES"]) == ("127.0.0.1", "20001", "1", "2")
    assert (env["TERAGPT_RUN_TOKEN"], env["PATH"], env["OMP_NUM_THREADS"]) == ("s", "/bin", "1")
