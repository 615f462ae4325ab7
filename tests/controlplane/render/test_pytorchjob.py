from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from controlplane.domain.placement import Scheduling
from controlplane.render import RESERVED_VARIABLES, Attempt, Identity, PyTorchJob, identity_of, render, secret_of

ATTEMPT = Attempt(
    run_id="run_01JD2K7QABCDEFGH",
    name="gpt-01jd2k7q-1",
    attempt=1,
    nodes=1,
    processes_per_node=2,
    gpus_per_node=0,
    cpus_per_node=4,
    memory_per_node=4 << 30,
    image="teragpt:0.1",
    spec={"size": "tiny", "steps": 10},
    run_url="http://127.0.0.1:8000/v1/runs/run_01JD2K7QABCDEFGH",
    spec_hash="abc",
    run_token="s3cret",
    env={"MINE": "1"},
    labels={"team": "lm"},
    grace_s=45,
)


def attempt(**changes: Any) -> Attempt:
    return dataclasses.replace(ATTEMPT, **changes)


def pod(manifest: dict[str, Any], role: str = "Master") -> dict[str, Any]:
    return dict(manifest["spec"]["pytorchReplicaSpecs"][role]["template"]["spec"])


def container(manifest: dict[str, Any], role: str = "Master") -> dict[str, Any]:
    return dict(pod(manifest, role)["containers"][0])


def test_one_node_has_an_explicit_master_and_no_worker() -> None:
    specs = render(ATTEMPT)["spec"]["pytorchReplicaSpecs"]
    assert list(specs) == ["Master"]
    assert specs["Master"]["replicas"] == 1
    assert specs["Master"]["restartPolicy"] == "Never"


def test_further_nodes_are_workers_of_the_same_template() -> None:
    specs = render(attempt(nodes=4))["spec"]["pytorchReplicaSpecs"]
    assert (specs["Master"]["replicas"], specs["Worker"]["replicas"]) == (1, 3)
    assert specs["Worker"]["restartPolicy"] == "Never"
    assert specs["Worker"]["template"] == specs["Master"]["template"]


def test_the_job_says_what_the_operator_would_default_otherwise() -> None:
    spec = render(ATTEMPT)["spec"]
    assert spec["nprocPerNode"] == "2"
    assert spec["runPolicy"] == {"cleanPodPolicy": "Running"}


def test_the_container_is_the_one_the_operator_knows() -> None:
    made = container(render(ATTEMPT))
    assert made["name"] == "pytorch"
    assert made["image"] == "teragpt:0.1"
    assert made["command"] == ["python", "-m", "teragpt.launch", "-m", "teragpt.train"]
    assert made["ports"] == [{"name": "pytorchjob-port", "containerPort": 23456}]
    assert made["terminationMessagePath"] == "/dev/termination-log"
    assert made["volumeMounts"] == [
        {"name": "dshm", "mountPath": "/dev/shm"},  # noqa: S108
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
    ]


def test_the_pod_is_restricted_and_has_time_to_write_a_checkpoint() -> None:
    made = pod(render(ATTEMPT))
    assert made["terminationGracePeriodSeconds"] == 45
    assert made["automountServiceAccountToken"] is False
    assert made["enableServiceLinks"] is False
    assert made["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "fsGroup": 10001,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert made["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert made["volumes"] == [
        {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
        {"name": "tmp", "emptyDir": {}},
    ]


@pytest.mark.parametrize(
    ("changes", "limits"),
    [
        ({}, {"cpu": "4", "memory": "4Gi"}),
        ({"memory_per_node": 1000, "gpus_per_node": 8}, {"cpu": "4", "memory": "1000", "nvidia.com/gpu": "8"}),
        ({"memory_per_node": 1536 << 20, "cpus_per_node": None}, {"memory": "1536Mi"}),
        ({"memory_per_node": 3 << 40}, {"cpu": "4", "memory": "3Ti"}),
        ({"cpus_per_node": 0.25, "memory_per_node": None}, {"cpu": "250m"}),
        ({"cpus_per_node": 2.0, "memory_per_node": None}, {"cpu": "2"}),
        ({"cpus_per_node": 1.1, "memory_per_node": None}, {"cpu": "1100m"}),
    ],
)
def test_requests_equal_limits_in_exact_quantities(changes: dict[str, Any], limits: dict[str, str]) -> None:
    assert container(render(attempt(**changes)))["resources"] == {"limits": limits, "requests": limits}


def test_nothing_asked_is_nothing_rendered() -> None:
    assert "resources" not in container(render(attempt(cpus_per_node=None, memory_per_node=None)))


def test_the_environment_carries_the_attempt_and_the_users_variables() -> None:
    env = {entry["name"]: entry.get("value") for entry in container(render(ATTEMPT))["env"]}
    assert json.loads(env.pop("TERAGPT_SPEC") or "") == {"size": "tiny", "steps": 10}
    assert env == {
        "OMP_NUM_THREADS": "2",
        "MINE": "1",
        "TERAGPT_RUN_ID": ATTEMPT.run_id,
        "TERAGPT_ATTEMPT": "1",
        "TERAGPT_RUN_URL": ATTEMPT.run_url,
        "TERAGPT_GRACE_S": "45",
        "TERAGPT_RUN_TOKEN": None,
    }


@pytest.mark.parametrize(
    ("changes", "threads"),
    [
        ({"cpus_per_node": 1}, "1"),
        ({"cpus_per_node": 0.25}, "1"),
        ({"env": {"OMP_NUM_THREADS": "7"}}, "7"),
        ({"cpus_per_node": None}, None),
    ],
)
def test_threads_follow_the_share_of_cpus_unless_given(changes: dict[str, Any], threads: str | None) -> None:
    env = {entry["name"]: entry.get("value") for entry in container(render(attempt(**changes)))["env"]}
    assert env.get("OMP_NUM_THREADS") == threads


def test_the_token_is_in_no_manifest_and_no_repr() -> None:
    assert "s3cret" not in json.dumps(render(ATTEMPT)) + repr(ATTEMPT)
    reference = container(render(ATTEMPT))["env"][-1]
    assert reference == {
        "name": "TERAGPT_RUN_TOKEN",
        "valueFrom": {"secretKeyRef": {"name": ATTEMPT.name, "key": "token"}},
    }
    assert secret_of(ATTEMPT) == {"token": "s3cret"}


def test_without_a_token_there_is_no_secret() -> None:
    bare = attempt(run_token="")
    assert secret_of(bare) == {}
    assert all("valueFrom" not in entry for entry in container(render(bare))["env"])


def test_the_object_says_whose_it_is() -> None:
    manifest = render(ATTEMPT)
    assert identity_of(manifest) == Identity(ATTEMPT.run_id, 1, "abc")
    labels = manifest["metadata"]["labels"]
    assert labels["team"] == "lm"
    assert labels["app.kubernetes.io/managed-by"] == "teragpt"
    template = manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
    assert template["metadata"]["labels"] == labels


@pytest.mark.parametrize(("preemptible", "evicted"), [(False, "false"), (True, "true")])
def test_no_proxy_stands_beside_the_ranks_and_no_autoscaler_moves_one_alone(*, preemptible: bool, evicted: str) -> None:
    manifest = render(attempt(scheduling=Scheduling(preemptible=preemptible)))
    annotations = manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["metadata"]["annotations"]
    assert annotations["sidecar.istio.io/inject"] == "false"
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == evicted
    assert ("karpenter.sh/do-not-disrupt" in annotations) is not preemptible


def test_a_users_label_cannot_take_the_place_of_ours() -> None:
    assert identity_of(render(attempt(labels={"teragpt.io/run-id": "other"}))).run_id == ATTEMPT.run_id


@pytest.mark.parametrize("name", sorted(RESERVED_VARIABLES))
def test_a_users_variable_that_would_be_overridden_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        render(attempt(env={name: "1"}))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "Gpt"}, "name"),
        ({"name": "1gpt"}, "name"),
        ({"name": "g" * 52}, "name"),
        ({"processes_per_node": 0}, "nproc_?[pP]er_?[nN]ode"),
        ({"grace_s": -1}, "termination_grace_period_seconds"),
        ({"image": ""}, "image"),
        ({"labels": {"team": "two words"}}, "labels"),
        ({"labels": {"-": "x"}}, "labels"),
        ({"env": {"A=B": "1"}}, "name"),
        ({"nodes": 10_001}, "replicas"),
    ],
)
def test_what_kubernetes_would_not_take_is_refused_by_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        render(attempt(**changes))


def test_a_rendered_manifest_reads_back_unchanged() -> None:
    manifest = render(attempt(nodes=3))
    assert PyTorchJob.model_validate(json.loads(json.dumps(manifest))).manifest() == manifest


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "runPolicy", "suspend"), True),
        (("spec", "runPolicy", "backoffLimit"), 3),
        (("spec", "elasticPolicy"), {}),
        (("spec", "nprocPerNode"), "auto"),
        (("spec", "pytorchReplicaSpecs", "Master", "replicas"), 2),
        (("spec", "pytorchReplicaSpecs", "Master", "restartPolicy"), "OnFailure"),
        (("spec", "pytorchReplicaSpecs", "Master", "template", "spec", "hostNetwork"), True),
        (("metadata", "labels"), {}),
        (("metadata", "labels"), {"teragpt.io/run-id": "r", "teragpt.io/attempt": "one"}),
    ],
)
def test_fields_that_we_never_render_are_no_part_of_the_shape(path: tuple[str, ...], value: object) -> None:
    manifest: dict[str, Any] = render(ATTEMPT)
    parent = manifest
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    with pytest.raises(ValueError, match=path[0]):
        PyTorchJob.model_validate(manifest)


def test_a_variable_has_one_source() -> None:
    manifest = render(ATTEMPT)
    container(manifest)["env"].append({"name": "BOTH"})
    with pytest.raises(ValueError, match="exactly one of value and valueFrom"):
        PyTorchJob.model_validate(manifest)
