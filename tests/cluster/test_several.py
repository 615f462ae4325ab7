"""A control plane with two clusters, each reached by a kubeconfig and an account of its own, and a third one away."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.cluster.conftest import RUN_ID, Cluster, Namespace, with_claim
from tests.cluster.plane import Plane, until
from tests.helm.rendered import one

STEPS = {"steps": 6, "eval_every": 6, "log_every": 2}
ALONE = {"nodes": 1, "processes_per_node": 1}


@pytest.fixture(scope="module")
def places(cluster: Cluster) -> Iterator[list[Namespace]]:
    """What both clusters have: a namespace and its claim."""
    with ExitStack() as stack:
        yield [stack.enter_context(with_claim(cluster)) for _ in range(2)]


def account(place: Namespace, folder: Path) -> Path:
    """A kubeconfig, of two contexts, with an account that has the chart's Role in this namespace."""
    rules = one("Role", namespace=place.name)["rules"]
    subjects = [{"kind": "ServiceAccount", "name": "teragpt", "namespace": place.name}]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "teragpt"}
    rbac = "rbac.authorization.k8s.io/v1"
    place.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "teragpt"}},
        {"apiVersion": rbac, "kind": "Role", "metadata": {"name": "teragpt"}, "rules": rules},
        {
            "apiVersion": rbac,
            "kind": "RoleBinding",
            "metadata": {"name": "teragpt"},
            "roleRef": role,
            "subjects": subjects,
        },
    )
    config = json.loads(place.cluster.kubectl("config", "view", "--raw", "--output=json"))
    (server,) = config["clusters"]
    token = place.kubectl("create", "token", "teragpt", "--duration=2h").strip()
    config["users"] = [{"name": "teragpt", "user": {"token": token}}]
    away = {"name": "away", "cluster": {"server": "https://127.0.0.1:1"}}
    config["clusters"] = [server, away]
    config["contexts"] = [
        {"name": each["name"], "context": {"cluster": each["name"], "user": "teragpt", "namespace": place.name}}
        for each in config["clusters"]
    ]
    config["current-context"] = server["name"]
    path = folder / f"{place.name}.json"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def server(places: list[Namespace], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    folder, cluster = tmp_path_factory.mktemp("several"), places[0].cluster
    configs = [account(place, folder) for place in places]
    (context,) = (each["name"] for each in json.loads(configs[1].read_text())["contexts"] if each["name"] != "away")
    there = {"kubeconfig": str(configs[1]), "storage": f"pvc://{places[1].claim}/there"}
    file = folder / "clusters.json"
    file.write_text(
        json.dumps(
            {"clusters": [{"name": "east", "context": context, **there}, {"name": "west", "context": "away", **there}]}
        )
    )
    settings = {
        "cluster": "kubernetes",
        "kubeconfig": str(configs[0]),
        "image": cluster.image,
        "storage": f"pvc://{places[0].claim}/here",
        "clusters": str(file),
    }
    with auditor(places[0]):
        made = Plane(folder / "home", cluster.host_address, settings)
        yield made
        made.stop()


@contextmanager
def auditor(place: Namespace) -> Generator[None]:
    """While it lasts, this account has tokens of pods reviewed; the other one knows pods by signatures."""
    cluster, name, group = place.cluster, f"{place.name}-reviews", "rbac.authorization.k8s.io"
    subjects = [{"kind": "ServiceAccount", "name": "teragpt", "namespace": place.name}]
    role = {"apiGroup": group, "kind": "ClusterRole", "name": "system:auth-delegator"}
    binding = {"apiVersion": f"{group}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name}}
    cluster.apply({**binding, "roleRef": role, "subjects": subjects})
    try:
        yield
    finally:
        cluster.kubectl("delete", "clusterrolebinding", name)


@pytest.mark.parametrize("kind", ["Job", "PyTorchJob"])
def test_pods_that_a_deleted_object_left_are_ended_before_the_next_attempt_and_by_a_cancel(
    plane: Plane, places: list[Namespace], kind: str
) -> None:
    place = places[0]
    asked = {"size": "tiny", "train": {"steps": 100_000}, "compute": ALONE, "kubernetes": {"kind": kind}}
    run = plane.client.create(asked)["id"]
    plane.wait(run, "running")
    for attempt in (1, 2):
        assert len(working(place, run)) == 1
        name = plane.client.run(run)["kubernetes"]["name"]
        place.kubectl("delete", kind, name, "--cascade=orphan")
        if attempt == 2:
            plane.client.cancel(run)
            assert plane.wait(run, "cancelled")["attempt"] == 2
            assert working(place, run) == [], "nothing of a run that is cancelled works"
            return
        until(lambda: 2 in working(place, run) or None, 120, plane.log.read_text)
        assert working(place, run) == [2], "the next attempt works alone"
        plane.wait(run, "running")
        first, _ = plane.client.attempts(run)
        assert first["reason"] == "ObjectLost"


def working(place: Namespace, run: str) -> list[int]:
    """The attempts of the run whose pods have a container that runs."""
    pods = place.read("pods", f"--selector={RUN_ID}={run}")["items"]
    states = [(pod, one["state"]) for pod in pods for one in pod["status"].get("containerStatuses", ())]
    return [int(pod["metadata"]["labels"]["teragpt.io/attempt"]) for pod, state in states if "running" in state]


def happened(place: Namespace, name: str) -> list[str]:
    """What Kubernetes told there of an object of this name and of its pods."""
    events = place.read("events")["items"]
    return [one["reason"] for one in events if one["involvedObject"]["name"].startswith(name)]


def test_runs_train_on_the_clusters_that_they_name_while_another_is_away(plane: Plane, places: list[Namespace]) -> None:
    asked = {"size": "tiny", "train": STEPS, "compute": ALONE}
    lost = plane.client.create({**asked, "compute": {**ALONE, "cluster": "west"}})["id"]
    runs = [plane.client.create({**asked, "compute": {**ALONE, **more}})["id"] for more in ({}, {"cluster": "east"})]
    done = [plane.wait(run, "succeeded") for run in runs]
    assert [run["kubernetes"]["cluster"] for run in done] == ["kubernetes", "east"]
    assert [run["kubernetes"]["namespace"] for run in done] == [place.name for place in places]
    assert [run["progress"]["step"] for run in done] == [6, 6], "pods are known by reviews and by signatures"
    for run, place, other in zip(done, places, reversed(places), strict=True):
        assert happened(place, run["kubernetes"]["name"])
        assert not happened(other, run["kubernetes"]["name"])
        assert "step" in plane.client.logs(run["id"])
    assert plane.client.run(lost)["reason"] == "ClusterUnreachable"
    shown = {each["name"]: each for each in plane.client.clusters()}
    assert {*shown} == {"kubernetes", "east", "west"}
    assert not shown["west"]["ready"]
    assert shown["east"]["namespace"] == places[1].name
