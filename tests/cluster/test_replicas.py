"""Several control planes on one Postgres, as the chart installs them: the leader dies, the database goes away."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from controlplane.client import Client
from tests.cluster import images
from tests.cluster.conftest import SCRATCH, SCRATCH_MOUNT, SECURITY
from tests.cluster.layout import Failed
from tests.cluster.plane import until
from tests.cluster.release import SECONDS, Release, at_step, ended
from tests.helm.rendered import CHART

READYZ = """
import urllib.error, urllib.request
try:
    reply = urllib.request.urlopen("http://localhost:8000/readyz")
except urllib.error.HTTPError as refused:
    reply = refused
print(reply.status, reply.read().decode())
"""


@pytest.fixture
def shared_store(release: Release) -> Release:
    """The release with two replicas on a Postgres of the namespace's own, which is up."""
    if not release.namespace.cluster.registry:
        pytest.skip("Postgres' image is built for our own cluster")
    name, password, access = "database", uuid4().hex, uuid4().hex
    metadata: dict[str, Any] = {"name": name}
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    container = {
        "name": name,
        "image": images.postgres(),
        "env": [{"name": "PASSWORD", "value": password}],
        "securityContext": SECURITY,
        "readinessProbe": {"tcpSocket": {"port": 5432}, "periodSeconds": 1},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}, SCRATCH_MOUNT],
    }
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": name}}, SCRATCH]
    security = {"fsGroup": 10001}
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [container], "volumes": volumes, "securityContext": security},
    }
    spec = {"strategy": {"type": "Recreate"}, "selector": {"matchLabels": {"app": name}}, "template": template}
    url = f"postgresql://{name}:{password}@{name}:5432/teragpt"
    release.namespace.apply(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": {"app": name}, "ports": [{"port": 5432}]},
        },
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "url"}, "stringData": {"url": url}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "access"}, "stringData": {"token": access}},
    )
    values = {
        "replicas": 2,
        "database": {"existingSecret": "url"},
        "auth": {"existingSecret": "access"},
        "podDisruptionBudget": {"enabled": True},
        "settings": {"leaseS": 3},
    }
    return Release(release.namespace, release.values | values)


@pytest.mark.timeout(600)  # a run's whole life, and every part's restart
def test_neither_a_dead_leader_nor_an_absent_postgres_changes_what_a_user_sees(shared_store: Release) -> None:
    release = shared_store
    scale(release, 0)
    release.helm("install", "teragpt", str(CHART), "--values=-")
    until(lambda: len([*controlplanes(release, "Running")]) == 2 or None, SECONDS, release.log)
    for pod in controlplanes(release):
        assert not ready(pod), "without its store it serves nobody"
        said = until(lambda pod=pod: readiness(release, pod), 60, release.log)  # type: ignore[misc]
        assert said.startswith("503 "), said
        assert "the database teragpt at database cannot be used: " in said
        log = release.namespace.kubectl("logs", pod["metadata"]["name"])
        assert "the store is waited for: the database teragpt at database cannot be used: " in log
    scale(release, 1)
    with release.client() as client:
        leader = until(lambda: leads(client), 30, release.log)
    (other,) = {pod["metadata"]["name"] for pod in controlplanes(release)} - {leader}
    with release.client(f"pod/{other}") as client:
        run = client.create({"size": "tiny", "train": {"steps": 250}, "compute": {"nodes": 1}})["id"]
        until(lambda: at_step(client.run(run), 2), SECONDS, lambda: f"{client.run(run)}\n{release.log()}")
        trains = release.namespace.uids(run)
        (trainer,) = release.namespace.pods(run)
        release.namespace.signal(trainer, "STOP")  # it must not end before its control planes have lost their store
        release.namespace.kubectl("delete", "pod", leader, "--force", "--grace-period=0")
        assert until(lambda: name if (name := leads(client)) not in {leader, None} else None, 30, release.log)
    scale(release, 0)
    until(lambda: None if [pod for pod in controlplanes(release) if ready(pod)] else True, 120, release.log)
    release.namespace.signal(trainer, "CONT")
    until(lambda: "finished" in said_by(release, trainer) or None, SECONDS, lambda: said_by(release, trainer))
    assert release.namespace.uids(run) == trains, "the run's pods are the same, and wait with their last points"
    scale(release, 1)
    with release.client() as client:
        done = until(lambda: ended(client.run(run)), SECONDS, release.log)
        assert (done["phase"], done["attempt"], done["restarts"]) == ("succeeded", 1, 0)
        steps = [point["step"] for point in client.metrics(run, keys=["loss"]) if point.get("loss") is not None]
        assert steps == list(range(1, 251)), "no point was lost"
    assert not [pod for pod in controlplanes(release) if pod["status"]["containerStatuses"][0]["restartCount"]]


def readiness(release: Release, pod: dict[str, Any]) -> str | None:
    """What a control plane answers to whether it is ready, once it answers: status and body."""
    try:
        return release.namespace.kubectl("exec", pod["metadata"]["name"], "--", "python", "-c", READYZ)
    except Failed:
        return None


def scale(release: Release, database: int) -> None:
    """Have the database or not; with it, until all control planes serve."""
    release.namespace.kubectl("scale", "deployment/database", f"--replicas={database}")
    if database:
        release.namespace.kubectl("rollout", "status", "deployment/teragpt", "--timeout=2m", timeout_s=130)


def controlplanes(release: Release, phase: str = "") -> list[dict[str, Any]]:
    found = release.namespace.read("pods", "--selector=app.kubernetes.io/component=controlplane")["items"]
    return [pod for pod in found if phase in {"", pod["status"]["phase"]}]


def said_by(release: Release, pod: str) -> str:
    """What the pod printed of late."""
    return release.namespace.kubectl("logs", pod, "--tail=9")


def ready(pod: dict[str, Any]) -> bool:
    return any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", ()))


def leads(client: Client) -> str | None:
    """The pod of the leader, if there is one."""
    part = client.ready()["components"]["leader"]
    return str(part["detail"]).split()[0] if part["ready"] else None
