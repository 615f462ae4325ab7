"""Runs in Kueue's queues, on pods that train. Kueue itself is played by `tests/cluster/kueue.py`, which says why."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster import kueue
from tests.cluster.conftest import Cluster, Namespace
from tests.cluster.plane import Plane, until

API = "kueue.x-k8s.io/v1beta2"
QUEUE, HELD, NOWHERE = "research", "held", "nowhere"
ROOM = "300m"  # for one run of one pod, which asks for 250m
ONE = {"nodes": 1, "processes_per_node": 1}
pytestmark = pytest.mark.timeout(600)  # two runs' whole lives, one of them twice


@pytest.fixture(scope="module", autouse=True)
def queues(cluster: Cluster, trainer_v2: Cluster, furnished: Namespace) -> Iterator[kueue.Kueue]:
    """There before the control plane asks which kinds there are."""
    del trainer_v2
    if cluster.kubectl("get", "crd", "--selector=!teragpt.io/test", "--output=name").count(".kueue.x-k8s.io"):
        pytest.skip("this cluster has a Kueue of its own")
    names = {name: f"{furnished.name}-{name}" for name in ("team", "urgent")}
    flavor = {"name": "default", "resources": [{"name": "cpu", "nominalQuota": ROOM}]}
    groups = [{"coveredResources": ["cpu"], "flavors": [flavor]}]
    local = {"apiVersion": API, "kind": "LocalQueue"}
    with kueue.kinds(cluster.kubeconfig):
        cluster.apply(
            {
                "apiVersion": API,
                "kind": "ClusterQueue",
                "metadata": {"name": names["team"]},
                "spec": {"resourceGroups": groups},
            },
            {"apiVersion": API, "kind": "WorkloadPriorityClass", "metadata": {"name": names["urgent"]}, "value": 1000},
        )
        furnished.apply(
            {**local, "metadata": {"name": QUEUE}, "spec": {"clusterQueue": names["team"]}},
            {**local, "metadata": {"name": HELD}, "spec": {"clusterQueue": names["team"], "stopPolicy": "Hold"}},
        )
        made = kueue.Kueue(cluster.kubeconfig, furnished.name)
        yield made
        made.close()
    assert made.errors == []


@pytest.fixture
def urgent(furnished: Namespace) -> str:
    return f"{furnished.name}-urgent"


def post(plane: Plane, queue: str, *, kind: str = "Job", steps: int = 12, priority: str | None = None) -> str:
    """A run in a queue; its id."""
    scheduling = {"queue": queue, **({"priority": priority} if priority else {})}
    spec = {
        "size": "tiny",
        "train": {"steps": steps, "eval_every": steps, "log_every": 1},
        "compute": ONE,
        "kubernetes": {"kind": kind},
        "scheduling": scheduling,
    }
    return str(plane.client.create(spec)["id"])


def waits(plane: Plane, run: str, message: str) -> None:
    """Until it is told this."""

    def look() -> bool | None:
        found = plane.client.run(run)
        return (found["phase"], found["reason"], found["message"]) == ("pending", "WaitingForQuota", message) or None

    until(look, 60, lambda: str(plane.client.run(run)))


@pytest.mark.parametrize("kind", ["PyTorchJob", "Job", "TrainJob"])
def test_a_run_is_admitted_evicted_for_one_of_higher_priority_and_goes_on_at_the_same_step(
    plane: Plane, furnished: Namespace, urgent: str, kind: str
) -> None:
    first = post(plane, QUEUE, kind=kind, steps=150)
    until(lambda: plane.client.run(first)["progress"], 120)
    second = post(plane, QUEUE, kind=kind)
    short = "insufficient unused quota for cpu in flavor default, 200m more needed"
    pod_set = {"PyTorchJob": "master", "Job": "main", "TrainJob": "node"}[kind]
    lacking = f"queue {QUEUE}: couldn't assign flavors to pod set {pod_set}: {short}"
    waits(plane, second, f"place 1 of 1 in {lacking}")
    third = post(plane, QUEUE, kind=kind, priority=urgent)
    until(lambda: plane.client.run(first)["attempt"] == 2 or None, 120, lambda: str(plane.client.run(first)))
    loads = furnished.read("workloads.kueue.x-k8s.io")["items"]
    assert {load["spec"]["priorityClassRef"]["name"] for load in loads if load["spec"]["priority"] == 1000} == {urgent}
    done = {run: plane.wait(run, "succeeded") for run in (third, second, first)}
    assert done[third]["finished_at"] < done[second]["finished_at"] < done[first]["finished_at"]
    evicted, again = plane.client.attempts(first)
    assert (evicted["reason"], evicted["charged"], done[first]["restarts"]) == ("Preempted", False, 0)
    assert "due to prioritization in the ClusterQueue" in (evicted["message"] or "")
    points = [point for point in plane.client.metrics(first) if "loss" in point]
    assert [point["step"] for point in points] == list(range(1, 151))
    kept = again["resumed_from"] or 0
    assert {point["attempt"] for point in points if point["step"] > kept} == {2}
    assert max(point["step"] for point in points if point["attempt"] == 1) == kept > 0


def test_a_queue_that_does_not_exist_or_is_held_is_said_in_words(plane: Plane, furnished: Namespace) -> None:
    nowhere, held = post(plane, NOWHERE), post(plane, HELD)
    waits(plane, nowhere, f"queue {NOWHERE}: LocalQueue {NOWHERE} doesn't exist")
    waits(plane, held, f"queue {HELD}: LocalQueue {HELD} is stopped")
    assert furnished.pods(nowhere) == furnished.pods(held) == []
    plane.client.cancel(nowhere)
    plane.wait(nowhere, "cancelled", timeout_s=60)
    furnished.kubectl(
        "patch", "localqueue.kueue.x-k8s.io", HELD, "--type=merge", '--patch={"spec":{"stopPolicy":"None"}}'
    )
    plane.wait(held, "running")
