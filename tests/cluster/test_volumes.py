"""Volumes that are full or read-only, under the control plane and under pods of runs: said, and nothing is lost."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from controlplane.client import ApiError, Client
from tests.cluster.conftest import Cluster, Namespace
from tests.cluster.layout import Failed
from tests.cluster.plane import Plane, until
from tests.cluster.release import SECONDS, Release, at_step, ended
from tests.cluster.volumes import Volume, volume

STEPS = 150


@pytest.fixture
def store(release: Release, own_cluster: Cluster) -> Iterator[Volume]:
    """A small volume for the control plane's data folder."""
    del own_cluster
    with volume(release.namespace, "small", 48) as made:
        yield made


def create_many(client: Client) -> None:
    """As many runs as a database's log may still take that has room of its own."""
    for number in range(20):
        client.create({"size": "tiny", "name": f"one-of-many-{number}", "notes": "x" * 10_000})


@pytest.mark.timeout(600)  # a run's whole life, and the control plane's restarts on a volume that it cannot use
def test_a_store_that_fills_up_or_is_read_only_at_a_start_is_said_and_nothing_is_lost(
    release: Release, store: Volume
) -> None:
    release.apply("install", {"store": {"existingClaim": store.name}})
    with release.client() as client:
        run = client.create({"size": "tiny", "train": {"steps": STEPS, "log_every": 1}, "compute": {"nodes": 1}})["id"]
        until(lambda: at_step(client.run(run), 2), SECONDS, lambda: f"{client.run(run)}\n{release.log()}")
        pods = release.namespace.uids(run)
        store.fill()
        with pytest.raises(ApiError, match=r"the database cannot be written: .*full") as refused:
            create_many(client)
        assert refused.value.status == 503
        told = client.ready()
        assert told["ready"], "what is stored can be read"
        assert "/data is full (0 of 48 MiB free)" in told["components"]["volume"]["detail"]
        assert client.run(run)["phase"] == "running"
        assert "the database cannot be written: " in release.namespace.kubectl("logs", "deployment/teragpt")
    cannot_start(release, "No space left on device|database or disk is full")
    store.make_room()
    starts_again(release)
    release.namespace.kubectl("scale", "deployment/teragpt", "--replicas=0")
    release.namespace.kubectl("wait", "pods", "--selector=app.kubernetes.io/component=controlplane", "--for=delete")
    store.remount("ro")
    release.namespace.kubectl("scale", "deployment/teragpt", "--replicas=1")
    said = until(lambda: last_words(release), 60, release.log)
    assert said == "error: the data folder /data cannot be used: Read-only file system"
    store.remount("rw")
    starts_again(release)
    with release.client() as client:
        done = until(lambda: ended(client.run(run)), SECONDS, release.log)
        assert (done["phase"], done["attempt"], done["restarts"]) == ("succeeded", 1, 0)
        assert release.namespace.uids(run) in (pods, []), "its pods have trained on"
        steps = [point["step"] for point in client.metrics(run, keys=["loss"]) if point.get("loss") is not None]
        assert steps == list(range(1, STEPS + 1)), "no point was lost"
        assert client.ready()["components"]["volume"]["ready"]


def cannot_start(release: Release, why: str) -> None:
    """A new pod of the control plane ends with one sentence that says why."""
    release.namespace.kubectl("delete", "pods", "--selector=app.kubernetes.io/component=controlplane", "--wait=true")
    said = until(lambda: last_words(release), 60, release.log)
    assert re.fullmatch(rf"error: .*({why})", said), said


def last_words(release: Release) -> str | None:
    """What the control plane's container said as it last ended."""
    (pod,) = release.namespace.read("pods", "--selector=app.kubernetes.io/component=controlplane")["items"][:1] or [{}]
    statuses = pod.get("status", {}).get("containerStatuses", [{}])
    if not any("terminated" in statuses[0].get(part, {}) for part in ("state", "lastState")):
        return None
    which = () if "terminated" in statuses[0]["state"] else ("--previous",)
    try:
        return release.namespace.kubectl("logs", pod["metadata"]["name"], *which).strip().splitlines()[-1]
    except (Failed, IndexError):  # between two tries
        return None


def starts_again(release: Release) -> None:
    """By itself: the kubelet tries again, after a pause that grows."""
    release.namespace.kubectl("rollout", "status", "deployment/teragpt", "--timeout=3m", timeout_s=190)


@pytest.fixture
def full(furnished: Namespace, own_cluster: Cluster) -> Iterator[Volume]:
    del own_cluster
    with volume(furnished, "full", 8) as made:
        yield made


def test_a_checkpoint_claim_that_fills_up_or_is_full_or_read_only_is_the_runs_reason(
    plane: Plane, full: Volume
) -> None:
    spec: dict[str, Any] = {
        "size": "tiny",
        "train": {"steps": 3000, "eval_every": 3000, "log_every": 1},
        "compute": {"nodes": 1, "processes_per_node": 1},
        "checkpoint": {"uri": f"pvc://{full.name}/one", "every_steps": 5},
        "limits": {"max_restarts": 1},
    }
    done = plane.ended(plane.client.create(spec)["id"])  # its first checkpoint is larger than the claim
    attempts = plane.client.attempts(done["id"])
    assert (done["phase"], done["reason"], done["restarts"]) == ("failed", "DiskFull", 1)
    assert [one["reason"] for one in attempts] == ["DiskFull", "DiskFull"], "on a full claim, too, as it begins"
    assert "No space left on device" in json.dumps(attempts[-1])
    for path in full.seen().iterdir():
        shutil.rmtree(path)
    full.remount("ro")
    refused = plane.ended(plane.client.create(spec)["id"])
    assert (refused["phase"], refused["reason"], refused["restarts"]) == ("failed", "ConfigError", 0)
    assert "out: got '/mnt/teragpt/full/one'; allowed: a folder that can be written (Read-only file system)" in str(
        refused["message"]
    )
