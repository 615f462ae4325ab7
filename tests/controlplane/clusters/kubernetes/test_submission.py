"""Objects are made once and ended once, whatever the answers are."""

from __future__ import annotations

import json

import pytest

from controlplane.clusters.base import NameConflict, Rejected, Unavailable
from controlplane.clusters.kubernetes import KubernetesCluster, submission
from controlplane.clusters.kubernetes import cluster as module
from controlplane.render import companions_of
from tests.controlplane.clusters.kubernetes.hands import Hands, eventually, manifest, observed
from tests.controlplane.clusters.kubernetes.server import Answer, ApiServer, Request, status

JOBS = "/pytorchjobs$"


def test_a_creation_whose_answer_was_lost_is_adopted(server: ApiServer, cluster: KubernetesCluster) -> None:
    one = manifest("run-1")
    posts: list[Request] = []

    def lose(request: Request) -> Answer:
        posts.append(request)
        return Answer(
            201, server.create("/apis/kubeflow.org/v1/default/pytorchjobs", request.body, dry=False).body, cut=True
        )

    server.fail(lose, method="POST", path=JOBS)
    with pytest.raises(Unavailable):
        cluster.create(one)
    uid = cluster.create(one)
    assert [job.uid for job in eventually(cluster.observe)] == [uid]
    assert len(posts) == 1


def test_an_object_that_was_deleted_before_anybody_knew_of_it_is_not_made_again(
    server: ApiServer, cluster: KubernetesCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, path = manifest("run-1"), "/apis/kubeflow.org/v1/default/pytorchjobs"

    def lose(request: Request) -> Answer:
        return Answer(201, server.create(path, request.body, dry=False).body, cut=True)

    server.fail(lose, method="POST", path=JOBS)
    with pytest.raises(Unavailable):
        cluster.create(one)
    server.delete(path, "run-1", {"propagationPolicy": "Background"})
    with pytest.raises(Unavailable, match="whether run-1 was made is not known yet"):
        cluster.create(one)
    monkeypatch.setattr(submission, "LATE_S", 0.0)
    assert cluster.create(one) == ""
    assert len([one for one in server.requests if one.method == "POST" and one.path.endswith("/pytorchjobs")]) == 1


@pytest.mark.parametrize(
    ("code", "words", "known"),
    [
        (503, "starting", True),
        (429, "slowly", True),
        (500, 'failed calling webhook "v": connection refused', True),
        (500, "etcdserver: request timed out", False),
        (504, "timed out", False),
    ],
)
def test_a_creation_that_was_certainly_not_carried_out_is_asked_for_again(
    server: ApiServer, cluster: KubernetesCluster, monkeypatch: pytest.MonkeyPatch, code: int, words: str, known: bool
) -> None:
    monkeypatch.setattr(submission, "LATE_S", 0.0)
    server.fail(status(code, "Reason", words), method="POST", path=JOBS)
    with pytest.raises(Unavailable):
        cluster.create(manifest("run-1"))
    assert bool(cluster.create(manifest("run-1"))) == known


def test_an_object_that_is_gone_again_before_it_is_looked_at_is_asked_for_later(
    server: ApiServer, cluster: KubernetesCluster
) -> None:
    server.fail(status(409, "AlreadyExists", "it exists"), method="POST", path=JOBS)
    with pytest.raises(Unavailable, match="gone again"):
        cluster.create(manifest("run-1"))


def test_a_stranger_of_the_same_name_is_a_conflict(server: ApiServer, cluster: KubernetesCluster) -> None:
    server.create("/apis/kubeflow.org/v1/default/pytorchjobs", {"metadata": {"name": "run-1"}}, dry=False)
    with pytest.raises(NameConflict, match="not this attempt's"):
        cluster.create(manifest("run-1"))


def test_creations_ask_for_strict_validation_and_not_to_be_held_for_long(
    server: ApiServer, cluster: KubernetesCluster
) -> None:
    cluster.create(manifest("run-1"))
    cluster.dry_run(manifest("run-2", run="run_2"))
    posts = [
        request.query
        for request in server.requests
        if request.method == "POST" and request.path.endswith("/pytorchjobs")
    ]
    strict = {"fieldValidation": "Strict", "timeout": "20s"}
    assert posts == [strict, {**strict, "dryRun": "All"}]
    assert [job.name for job in cluster.observe()] == ["run-1"]


def test_secrets_are_refused(cluster: KubernetesCluster) -> None:
    with pytest.raises(Rejected, match="projected"):
        cluster.create(manifest("run-1"), {"token": "canary"})


def test_what_stands_beside_an_object_is_made_once(server: ApiServer, cluster: KubernetesCluster) -> None:
    for number in range(2):
        cluster.create(manifest(f"job-{number}", kind="Job", run=f"run_{number}"))
        cluster.create(manifest(f"train-{number}", kind="TrainJob", run=f"run_t{number}"))
    made = [request.path.rpartition("/")[2] for request in server.requests if request.method == "POST"]
    assert [made.count(kind) for kind in ("services", "trainingruntimes", "jobs", "trainjobs")] == [1, 1, 2, 2]


def test_a_webhook_that_has_not_heard_of_the_runtime_yet_is_asked_again(
    server: ApiServer, cluster: KubernetesCluster
) -> None:
    one = manifest("run-1", kind="TrainJob")
    (runtime,) = companions_of(one)
    denied = 'admission webhook "v" denied the request: spec.runtimeRef: Invalid value: trainingruntime "{}" not found'
    ours, another = (denied.format(name) for name in (runtime["metadata"]["name"], "theirs"))
    server.fail(status(403, "Forbidden", ours), method="POST", path="/trainjobs$", times=2)
    cluster.dry_run(one)
    with pytest.raises(Unavailable, match="not found"):
        cluster.create(one)
    cluster.create(one)
    server.fail(status(403, "Forbidden", another), method="POST", path="/trainjobs$", times=2)
    other = manifest("run-2", kind="TrainJob")
    for asked in (cluster.dry_run, cluster.create):
        with pytest.raises(Rejected, match="theirs"):
            asked(other)


@pytest.mark.parametrize(("code", "fine"), [(404, True), (409, True), (500, False), (403, False)])
def test_what_a_deletion_is_answered(server: ApiServer, cluster: KubernetesCluster, code: int, fine: bool) -> None:
    cluster.create(manifest("run-1"))
    server.fail(status(code, "Reason", "told"), method="DELETE")
    if fine:
        cluster.delete("run-1")
    else:
        with pytest.raises(Unavailable, match="told"):
            cluster.delete("run-1")
    asked = next(request for request in server.requests if request.method == "DELETE")
    assert asked.body["propagationPolicy"] == "Foreground"
    assert asked.body["preconditions"]["uid"] == observed(cluster, "run-1").uid


@pytest.mark.parametrize("gone", ["app.kubernetes.io/managed-by", "teragpt.io/run-id", "teragpt.io/attempt"])
def test_an_object_that_the_watch_does_not_show_is_deleted_too(
    server: ApiServer, cluster: KubernetesCluster, gone: str
) -> None:
    """Somebody may have taken a label away."""
    path = "/apis/kubeflow.org/v1/default/pytorchjobs"
    one = {**manifest("run-1"), "spec": {}}
    del one["metadata"]["labels"][gone]
    uid = json.loads(server.create(path, one, dry=False).body)["metadata"]["uid"]
    cluster.delete("run-1", "another")
    assert not [request for request in server.requests if request.method == "DELETE"]
    cluster.delete("run-1", uid)
    assert [request for request in server.requests if request.method == "DELETE"]


def test_a_deletion_waits_for_the_last_lines(
    server: ApiServer, hands: Hands, cluster: KubernetesCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOGS_S", 0.02)
    one = manifest("run-1")
    cluster.create(one)
    server.fail(status(500, "InternalError", "kubelet away"), path="/log$", times=10**6)
    (pod,) = hands.make_pods(one, [0])
    hands.run(pod)
    hands.end(pod, 1)
    eventually(lambda: observed(cluster, "run-1").pods[0].phase == "Failed")
    with pytest.raises(Unavailable, match="still being read"):
        cluster.delete("run-1")
    monkeypatch.setattr(module, "LOGS_AT_MOST_S", 0.0)
    cluster.delete("run-1")
    assert [request for request in server.requests if request.method == "DELETE"]


def test_logs_are_read_by_object_and_pod_until_they_are_forgotten(
    server: ApiServer, hands: Hands, cluster: KubernetesCluster
) -> None:
    one = manifest("run-1", kind="Job")
    cluster.create(one)
    server.write_log("run-1-0-abcde", "2026-11-24T12:00:00.000000000Z hello", ended=True)
    (pod,) = hands.make_pods(one, [0])
    hands.run(pod)
    eventually(lambda: cluster.logs("run-1", pod) == b"hello\n")
    assert cluster.logs("run-1", "run-1-0", 2, 3) == b"llo"
    assert cluster.logs("run-1", "run-1-1") == b""
    assert cluster.logs("../run-1", "run-1-0") == b""
    cluster.forget("run-1")  # it is still there, and goes on writing
    server.write_log("run-1-0-abcde", "2026-11-24T12:00:01.000000000Z more", ended=True)
    cluster.observe()
    assert cluster.logs("run-1", pod) == b""
    hands.remove_pod(pod)
    hands.remove(one)
    eventually(lambda: cluster.observe() == [])
    cluster.forget("run-1")
    assert cluster.logs("run-1", pod) == b""
