from __future__ import annotations

from typing import Any

import pytest

from controlplane.domain.placement import Scheduling
from controlplane.render import companions_of, environment_of, pods_of, render, training_runtime
from tests.controlplane.render.attempts import attempt, container, variables


def trainjob(**changes: Any) -> dict[str, Any]:
    return render(attempt(kind="TrainJob", **changes))


def test_the_trainer_is_told_nodes_processes_and_what_to_run() -> None:
    manifest = trainjob(nodes=3)
    trainer = manifest["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (3, 2)
    assert trainer["image"] == "teragpt:0.1"
    assert trainer["command"] == ["python", "-m", "teragpt.launch", "-m", "teragpt.train"]
    assert trainer["resourcesPerNode"]["requests"] == {"cpu": "500m", "memory": "3Gi"}
    assert container(manifest)["name"] == "node"
    assert manifest["spec"]["runtimePatches"][0]["manager"] == "teragpt.io/control-plane"


def test_no_variable_is_set_that_the_trainer_keeps_for_itself() -> None:
    assert not [name for name in variables(trainjob()) if name.startswith("PET_")]


def test_the_trainers_variables_are_shown_with_ours() -> None:
    manifest = trainjob(secrets={})
    shown = environment_of(manifest)
    assert list(shown) == ["gpt-01jd2k7q-1-node-0-0", "gpt-01jd2k7q-1-node-0-1"]
    told = shown["gpt-01jd2k7q-1-node-0-1"]
    assert {name: told[name] for name in told if name.startswith("PET_")} == {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "2",
        "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "gpt-01jd2k7q-1-node-0-0.gpt-01jd2k7q-1",
        "PET_MASTER_PORT": "29500",
    }
    assert told["TERAGPT_RUN_ID"] == "run_01JD2K7QABCDEFGH"
    assert not {"MASTER_ADDR", "RANK", "WORLD_SIZE"} & told.keys()


def test_pods_come_by_index() -> None:
    assert [
        (one.role, one.number, one.rank, one.spec.termination_grace_period_seconds) for one in pods_of(trainjob())
    ] == [("master", 0, 0, 120), ("worker", 0, 1, 120)]
    (patch,) = trainjob(grace_s=45)["spec"]["runtimePatches"]
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert job["template"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 45


def test_our_runtime_holds_what_no_trainjob_can_say() -> None:
    manifest = trainjob()
    (runtime,) = companions_of(manifest)
    assert runtime == training_runtime(namespace="lm")
    assert manifest["spec"]["runtimeRef"] == {
        "apiGroup": "trainer.kubeflow.org",
        "kind": "TrainingRuntime",
        "name": runtime["metadata"]["name"],
    }
    assert runtime["spec"]["mlPolicy"] == {"numNodes": 1, "torch": {}}
    jobset = runtime["spec"]["template"]["spec"]
    assert jobset["failurePolicy"] == {"maxRestarts": 0}
    (job,) = jobset["replicatedJobs"]
    assert job["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert job["template"]["spec"]["backoffLimit"] == 0
    pod = job["template"]["spec"]["template"]["spec"]
    assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
    assert pod["restartPolicy"] == "Never"
    assert pod["containers"][0]["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_a_priority_class_has_a_runtime_of_its_own() -> None:
    manifest = trainjob(scheduling=Scheduling(priority="high"))
    (runtime,) = companions_of(manifest)
    assert runtime["metadata"]["name"] != training_runtime()["metadata"]["name"]
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert job["template"]["spec"]["template"]["spec"]["priorityClassName"] == "high"


@pytest.mark.parametrize(
    ("runtime", "kind", "name"),
    [
        ("torch-distributed", "ClusterTrainingRuntime", "torch-distributed"),
        ("ClusterTrainingRuntime/mine", "ClusterTrainingRuntime", "mine"),
        ("TrainingRuntime/mine", "TrainingRuntime", "mine"),
    ],
)
def test_a_runtime_of_the_users_needs_nothing_of_ours(runtime: str, kind: str, name: str) -> None:
    manifest = trainjob(runtime=runtime)
    reference = manifest["spec"]["runtimeRef"]
    assert (reference["kind"], reference["name"]) == (kind, name)
    assert companions_of(manifest) == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"ttl_after_finish_s": 3600}, "ttl_after_finish_s"),
        ({"runtime": "mine", "scheduling": Scheduling(priority="high")}, "priority_class_name"),
        ({"pod_overrides": {"spec": {"schedulerName": "mine"}}}, "scheduler_name"),
        ({"pod_overrides": {"spec": {"containers": [{"name": "side", "image": "x"}]}}}, r"containers\[1\]"),
        (
            {"pod_overrides": {"spec": {"containers": [{"name": "node", "imagePullPolicy": "Always"}]}}},
            r"containers\[0\].image_pull_policy",
        ),
        ({"env": {f"V{number}": "" for number in range(200)}}, "env"),
        ({"name": "x" * 51}, "name"),
        ({"nodes": 10_001}, "numNodes|num_nodes"),
    ],
)
def test_what_a_trainjob_cannot_say_is_refused_by_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        trainjob(**changes)
