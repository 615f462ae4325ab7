"""The same tiny run as a TrainJob, by the Kubeflow Trainer and JobSet: as it is promised, and as a Job trains."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.render.trainjob import training_runtime
from tests.cluster.conftest import Cluster, Namespace
from tests.cluster.plane import Plane, until
from tests.cluster.test_runs import OF_THE_RUN, QUICK

RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
TWO = {"nodes": 2, "processes_per_node": 2}
LOOK = "for file in /proc/[0-9]*/environ; do tr '\\0' '\\n' <$file; echo; done 2>/dev/null"
THEIRS = "theirs"
pytestmark = pytest.mark.timeout(900)  # Trainer and JobSet are installed for it, and three runs train


@pytest.fixture(scope="module", autouse=True)
def trainers(trainer_v2: Cluster) -> Cluster:
    """There before the control plane asks which kinds there are."""
    return trainer_v2


@pytest.fixture
def runtime(furnished: Namespace) -> str:
    """One of the user's, as a run names it."""
    made = training_runtime()
    furnished.apply({**made, "metadata": {"name": THEIRS}})
    return f"TrainingRuntime/{THEIRS}"


def test_a_trainjob_has_the_ranks_and_the_curve_of_a_job_and_what_its_preview_promised(
    plane: Plane, furnished: Namespace, runtime: str
) -> None:
    kinds = ({"kind": "Job"}, {"kind": "TrainJob"}, {"kind": "TrainJob", "runtime": runtime})
    told = [trained(plane, furnished, kind) for kind in kinds]
    (ranks, curve), *others = told
    assert ranks == [{("0", "0", "4"), ("1", "1", "4")}, {("2", "0", "4"), ("3", "1", "4")}]
    for its_ranks, its_curve in others:
        assert its_ranks == ranks
        assert its_curve == pytest.approx(curve, rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "spec", "reason", "told"),
    [
        ("ResourceQuota", {"hard": {"requests.cpu": "1m"}}, "QuotaExceeded", "quota small does not allow its pods"),
        (
            "LimitRange",
            {"limits": [{"type": "Container", "max": {"memory": "64Mi"}}]},
            "LimitRange",
            "maximum memory usage per Container is 64Mi",
        ),
    ],
    ids=["quota", "range"],
)
def test_what_keeps_a_trainjobs_pods_away_is_said_by_name_within_half_a_minute(
    plane: Plane, furnished: Namespace, kind: str, spec: dict[str, Any], reason: str, told: str
) -> None:
    furnished.apply({"apiVersion": "v1", "kind": kind, "metadata": {"name": "small"}, "spec": spec})
    try:
        asked = {"size": "tiny", "compute": {"nodes": 1}, "kubernetes": {"kind": "TrainJob"}}
        run = plane.client.create(asked)["id"]
        until(lambda: plane.client.run(run)["reason"] == reason or None, 30, lambda: str(plane.client.run(run)))
        assert told in str(plane.client.run(run)["message"])
        plane.client.cancel(run)
        plane.wait(run, "cancelled")
    finally:
        furnished.kubectl("delete", kind, "small")


def trained(plane: Plane, namespace: Namespace, kind: dict[str, str]) -> tuple[list[Any], dict[int, float]]:
    """The ranks of each pod of a run, and its curve; its pods had the variables that were promised."""
    spec = {"size": "tiny", "train": QUICK, "compute": TWO, "kubernetes": kind}
    promised = plane.client.preview(spec)["environment"]
    run = plane.client.create(spec)["id"]
    plane.wait(run, "running")
    pods = namespace.pods(run)
    seen = [until(lambda pod=pod: ranks(namespace, pod), 60) for pod in pods]  # type: ignore[misc]
    for wanted, pod in zip(promised.values(), pods, strict=True):
        found = namespace.environment(pod)
        same = wanted.keys() - OF_THE_RUN
        assert {name: found.get(name) for name in same} == {name: wanted[name] for name in same}
        assert wanted.keys() <= found.keys()
    done = plane.wait(run, "succeeded")
    assert done["kubernetes"]["kind"] == kind["kind"]
    return seen, {point["step"]: point["loss"] for point in plane.client.metrics(run) if "loss" in point}


def ranks(namespace: Namespace, pod: str) -> set[tuple[str, ...]] | None:
    """RANK, LOCAL_RANK and WORLD_SIZE of both ranks in a pod, as the kernel tells; None until they are there."""
    found = namespace.kubectl("exec", pod, "--", "sh", "-c", LOOK).split("\n\n")
    told = (dict(line.split("=", 1) for line in one.splitlines() if "=" in line) for one in found)
    there = {tuple(one[name] for name in RANKS) for one in told if "LOCAL_RANK" in one}
    return there if len(there) == TWO["processes_per_node"] else None
