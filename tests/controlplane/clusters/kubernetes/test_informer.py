"""Lists and watches: whatever goes wrong, nothing looks gone that is there, and nothing is missed."""

from __future__ import annotations

import json

import pytest

from controlplane.clusters.base import ObservedJob, Unavailable
from controlplane.clusters.kubernetes import KubernetesCluster, informer
from controlplane.clusters.kubernetes.connection import Connection
from controlplane.clusters.kubernetes.records import read_pod
from controlplane.clusters.kubernetes.resources import PODS
from tests.controlplane.clusters.kubernetes.hands import Hands, Open, eventually, manifest, observed
from tests.controlplane.clusters.kubernetes.server import Answer, ApiServer, Raw, Request, status

JOBS = "/pytorchjobs$"


def lists(server: ApiServer, ending: str) -> int:
    return sum(
        request.method == "GET" and request.path.endswith(ending) and "watch" not in request.query
        for request in list(server.requests)
    )


def watches(server: ApiServer, ending: str) -> list[Request]:
    return [one for one in list(server.requests) if one.path.endswith(ending) and "watch" in one.query]


# --- lists and watches ----------------------------------------------------------------------------------------------


def test_long_lists_are_read_page_by_page(
    server: ApiServer, hands: Hands, cluster: KubernetesCluster, open_cluster: Open
) -> None:
    for number in range(7):
        one = manifest(f"run-{number}", run=f"run_{number}")
        cluster.create(one)
        hands.make_pods(one, [0])
    server.page = 2
    other = open_cluster()
    assert {job.name for job in eventually(other.observe)} == {f"run-{number}" for number in range(7)}
    assert all(job.pods[0].uid for job in other.observe())


def test_a_list_that_breaks_off_shows_nothing_until_it_is_whole(
    server: ApiServer, cluster: KubernetesCluster, open_cluster: Open
) -> None:
    for number in range(4):
        cluster.create(manifest(f"run-{number}", run=f"run_{number}"))
    server.page = 2
    server.fail(status(500, "InternalError", "etcd"), having="continue", path=JOBS, times=6)
    other = open_cluster()
    seen: list[list[ObservedJob]] = []

    def look() -> bool:
        seen.append(other.observe())
        return True

    eventually(look)
    assert [len(jobs) for jobs in seen] == [4]


def test_a_first_list_counts_once_whoever_is_told_has_taken_it_in(
    connection: Connection, hands: Hands, cluster: KubernetesCluster
) -> None:
    one = manifest("run-1")
    cluster.create(one)
    hands.make_pods(one, [0])
    early: list[set[str]] = []

    def changed(names: set[str]) -> None:
        with pytest.raises(Unavailable):
            pods.check()
        early.append(names)

    pods = informer.Informer(connection, PODS.path("default"), read_pod, changed)
    pods.start()
    eventually(lambda: pods.listed)
    pods.stop()
    assert early == [{"run-1-master-0"}]


def test_a_list_whose_token_expires_begins_again(
    server: ApiServer, cluster: KubernetesCluster, open_cluster: Open
) -> None:
    for number in range(4):
        cluster.create(manifest(f"run-{number}", run=f"run_{number}"))
    server.page = 2
    expired = status(410, "Expired", "the continue token is too old")
    server.fail(expired, path=JOBS, times=3, having="continue")
    other = open_cluster()
    assert len(eventually(other.observe)) == 4


def test_a_cut_watch_goes_on_without_another_list(server: ApiServer, hands: Hands, cluster: KubernetesCluster) -> None:
    one = manifest("run-1")
    cluster.create(one)
    before = lists(server, "/pods")
    for _ in range(3):
        asked = len(watches(server, "/pods"))
        server.cut_watches()
        eventually(lambda: len(watches(server, "/pods")) > asked)  # noqa: B023 - at once
    (pod,) = hands.make_pods(one, [0])
    eventually(lambda: observed(cluster, "run-1").pods[0].uid)
    hands.run(pod)
    eventually(lambda: observed(cluster, "run-1").pods[0].phase == "Running")
    assert lists(server, "/pods") == before


def test_nothing_that_happened_while_a_watch_was_cut_is_missed(
    server: ApiServer, hands: Hands, cluster: KubernetesCluster
) -> None:
    one = manifest("run-1", nodes=2)
    cluster.create(one)
    pods = hands.make_pods(one, [0, 1])
    eventually(lambda: all(pod.uid for pod in observed(cluster, "run-1").pods))
    server.fail(status(503, "ServiceUnavailable", "away"), path="/pods$", times=5)
    server.cut_watches()
    hands.run(pods[0])
    hands.remove_pod(pods[1])
    eventually(lambda: observed(cluster, "run-1").pods[0].phase == "Running")
    eventually(lambda: observed(cluster, "run-1").pods[1].uid == "")


@pytest.mark.parametrize("where", ["in the stream", "as the answer"])
def test_a_history_that_is_gone_leads_to_a_new_list_and_nothing_looks_gone(
    server: ApiServer, hands: Hands, cluster: KubernetesCluster, where: str
) -> None:
    one = manifest("run-1")
    cluster.create(one)
    hands.make_pods(one, [0])
    eventually(lambda: observed(cluster, "run-1").pods[0].uid)
    before = lists(server, "/pods")
    if where == "as the answer":
        expired = status(410, "Expired", "too old resource version")
        server.fail(expired, having="watch", path="/pods$", times=1)
    else:
        server.forget_history()
    server.cut_watches()
    seen = []

    def look() -> bool:
        seen.append(observed(cluster, "run-1").pods[0].uid)
        return lists(server, "/pods") > before

    eventually(look)
    assert all(seen)


def test_bookmarks_are_gone_on_from(server: ApiServer, cluster: KubernetesCluster) -> None:
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "4711"}}}
    server.fail(Answer(200, json.dumps(bookmark).encode() + b"\n"), having="watch", path="/pods$", times=1)
    server.cut_watches()
    eventually(lambda: watches(server, "/pods")[-1].query["resourceVersion"] == "4711")
    assert watches(server, "/pods")[-1].query["allowWatchBookmarks"] == "true"
    del cluster


@pytest.mark.parametrize(
    "said", [b"no event at all\n", b'{"type": "ERROR", "object": {"code": 500, "message": "x"}}\n', b""]
)
def test_a_watch_that_speaks_nonsense_is_opened_again_later(
    server: ApiServer, hands: Hands, cluster: KubernetesCluster, said: bytes
) -> None:
    one = manifest("run-1")
    cluster.create(one)
    asked = len(watches(server, "/pods"))
    server.fail(Answer(200, said), having="watch", path="/pods$", times=4)
    server.cut_watches()
    eventually(lambda: len(watches(server, "/pods")) >= asked + 5)
    hands.make_pods(one, [0])
    eventually(lambda: observed(cluster, "run-1").pods[0].uid)


def test_an_object_that_cannot_be_read_does_not_end_the_watch(
    server: ApiServer, hands: Hands, cluster: KubernetesCluster, caplog: pytest.LogCaptureFixture
) -> None:
    one = manifest("run-1")
    labels = {**one["metadata"]["labels"], "training.kubeflow.org/replica-index": "0"}
    broken: Raw = {"metadata": {"name": "x", "resourceVersion": "1", "labels": labels}, "spec": {"containers": 7}}
    event = json.dumps({"type": "ADDED", "object": broken}).encode() + b"\n"
    server.fail(Answer(200, event), path="/pods$", having="watch")
    server.cut_watches()
    cluster.create(one)
    hands.make_pods(one, [0])
    eventually(lambda: observed(cluster, "run-1").pods[0].uid)
    assert "cannot be followed" in caplog.text


def test_everything_is_listed_anew_now_and_then(
    server: ApiServer, cluster: KubernetesCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = lists(server, "/pods")
    monkeypatch.setattr(informer, "RESYNC_S", 0.0)
    server.cut_watches()
    eventually(lambda: lists(server, "/pods") > before)
    assert cluster.observe() == []


# --- what is not known is not said ----------------------------------------------------------------------------------


def test_until_the_server_answers_nothing_is_said(server: ApiServer, open_cluster: Open) -> None:
    server.fail(status(503, "ServiceUnavailable", "it starts"), times=30)
    cluster = open_cluster()
    with pytest.raises(Unavailable):
        cluster.observe()
    with pytest.raises(Unavailable):
        cluster.delete("run-1")
    assert cluster.traits().kinds == ("PyTorchJob",)
    eventually(lambda: cluster.observe() == [])


def test_a_server_that_is_lost_is_not_taken_for_an_empty_one(
    server: ApiServer, open_cluster: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = open_cluster()
    eventually(lambda: cluster.observe() == [])
    cluster.create(manifest("run-1"))
    monkeypatch.setattr(informer, "LOST_S", 0.05)
    server.fail(status(503, "ServiceUnavailable", "away"), method="GET", times=10**6)
    server.cut_watches()

    def lost() -> bool:
        try:
            assert [job.name for job in cluster.observe()] == ["run-1"]
        except Unavailable as error:
            return "away" in str(error)
        return False

    eventually(lost)
    server.heal()
    eventually(lambda: [job.name for job in cluster.observe()] == ["run-1"])


def test_an_open_watch_that_is_silent_for_too_long_counts_for_nothing(
    cluster: KubernetesCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(informer, "QUIET_S", -1.0)
    with pytest.raises(Unavailable, match="nothing heard"):
        cluster.observe()


def test_a_new_object_does_not_look_gone_while_the_watch_is_behind(
    server: ApiServer, cluster: KubernetesCluster
) -> None:
    server.fail(status(503, "ServiceUnavailable", "away"), method="GET", path=JOBS, times=10**6)
    server.cut_watches()
    asked = server.watches()
    uid = cluster.create(manifest("run-1"))
    assert [job.uid for job in cluster.observe()] == [uid]
    eventually(lambda: server.watches() > asked + 1)
    assert [job.uid for job in cluster.observe()] == [uid]
    server.heal()
    server.forget_history()  # and neither does it when a list follows
    eventually(lambda: lists(server, "/pytorchjobs") > 1)
    assert [job.uid for job in cluster.observe()] == [uid]
