"""What goes wrong between us and the API server, and what must not follow from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controlplane.clusters.base import NameConflict, ObservedJob, Rejected, Unavailable
from controlplane.clusters.kubernetes import KubernetesCluster, informer
from controlplane.clusters.kubernetes import cluster as module
from controlplane.clusters.kubernetes.connection import Connection
from controlplane.render import companions_of
from tests.controlplane.clusters.kubernetes.hands import Hands, eventually, kubeconfig, manifest, observed
from tests.controlplane.clusters.kubernetes.server import Answer, ApiServer, Raw, Request, status

JOBS = "/pytorchjobs$"
Open = Callable[..., KubernetesCluster]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informer, "BACKOFF_S", (0.01, 0.05))
    monkeypatch.setattr(module, "LOOK_SOON_S", 0.02)
    monkeypatch.setattr(module, "KEEP_S", 0.01)


@pytest.fixture
def open_cluster(config: Path, tmp_path: Path) -> Iterator[Open]:
    """Backends that are closed again; they have not seen anything yet."""
    made: list[KubernetesCluster] = []

    def open_cluster(instance: str = "us", kind: str = "auto", config: Path = config) -> KubernetesCluster:
        archive = tmp_path / f"logs-{len(made)}"
        made.append(
            KubernetesCluster(
                name="k", kubeconfig=config, namespace=None, archive=archive, instance=instance, kind=kind
            )
        )
        return made[-1]

    yield open_cluster
    for one in made:
        one.close()


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
    assert observed(cluster, "run-1").pods[1].uid == ""


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


# --- creating and deleting ------------------------------------------------------------------------------------------


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


def test_creations_ask_for_strict_validation(server: ApiServer, cluster: KubernetesCluster) -> None:
    cluster.create(manifest("run-1"))
    cluster.dry_run(manifest("run-2", run="run_2"))
    posts = [
        request.query
        for request in server.requests
        if request.method == "POST" and request.path.endswith("/pytorchjobs")
    ]
    assert posts == [{"fieldValidation": "Strict"}, {"fieldValidation": "Strict", "dryRun": "All"}]
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


def test_a_dry_run_needs_no_runtime_that_will_be_made(server: ApiServer, cluster: KubernetesCluster) -> None:
    denied = 'admission webhook "v" denied the request: spec.runtimeRef: Invalid value: trainingruntime "x" not found'
    server.fail(status(403, "Forbidden", denied), method="POST", path="/trainjobs$", times=2)
    one = manifest("run-1", kind="TrainJob")
    cluster.dry_run(one)
    (runtime,) = companions_of(one)
    cluster._submission._ensure(runtime)
    with pytest.raises(Rejected, match="not found"):
        cluster.dry_run(one)


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


def test_an_object_that_the_watch_does_not_show_is_deleted_too(server: ApiServer, cluster: KubernetesCluster) -> None:
    path = "/apis/kubeflow.org/v1/default/pytorchjobs"
    one = {**manifest("run-1"), "spec": {}}
    one["metadata"]["labels"] = {**one["metadata"]["labels"], "app.kubernetes.io/managed-by": "someone"}
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
    cluster.forget("run-1")  # it is still there
    assert cluster.logs("run-1", pod) == b"hello\n"
    hands.remove_pod(pod)
    hands.remove(one)
    eventually(lambda: cluster.observe() == [])
    cluster.forget("run-1")
    assert cluster.logs("run-1", pod) == b""


# --- whose objects, which kinds -------------------------------------------------------------------------------------


def test_another_installations_objects_are_left_alone(
    hands: Hands, cluster: KubernetesCluster, open_cluster: Open
) -> None:
    one = manifest("run-1")
    cluster.create(one)
    hands.make_pods(one, [0])
    other = open_cluster("them")
    eventually(lambda: other.observe() == [])
    assert [job.name for job in cluster.observe()] == ["run-1"]


def test_kinds_are_found_out_with_their_reasons(server: ApiServer, open_cluster: Open) -> None:
    server.absent = {"/apis/trainer.kubeflow.org/v1alpha1"}
    server.forbidden = {("create", "jobs")}
    cluster = open_cluster()
    eventually(lambda: cluster.observe() == [])
    traits = cluster.traits()
    assert traits.kinds == ("PyTorchJob",)
    assert traits.reasons == {
        "PyTorchJob": "kubeflow.org/v1 is served here, and the control plane may use it",
        "TrainJob": "this cluster does not serve trainer.kubeflow.org/v1alpha1 TrainJob",
        "Job": "the control plane may not create jobs in default",
    }
    assert (traits.namespace, traits.audience, traits.shared_folders) == ("default", "teragpt", False)


def test_the_kind_that_is_asked_for_comes_first_even_if_it_is_not_there(server: ApiServer, open_cluster: Open) -> None:
    server.absent = {"/apis/trainer.kubeflow.org/v1alpha1"}
    cluster = open_cluster(kind="TrainJob")
    eventually(lambda: cluster.observe() == [])
    assert cluster.traits().kinds == ("TrainJob", "PyTorchJob", "Job")
    assert cluster.traits().reasons["TrainJob"].startswith("asked for by the installation; this cluster does not")
    with pytest.raises(Unavailable, match=r"no trainer\.kubeflow\.org"):
        cluster.create(manifest("run-1", kind="TrainJob"))


def test_a_kind_that_comes_later_is_found_and_one_that_goes_is_left(
    server: ApiServer, open_cluster: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.02)
    server.absent = {"/apis/kubeflow.org/v1"}
    cluster = open_cluster()
    eventually(lambda: cluster.traits().kinds == ("TrainJob", "Job"))
    server.absent = set()
    eventually(lambda: cluster.traits().kinds == ("PyTorchJob", "TrainJob", "Job"))
    eventually(lambda: cluster.observe() == [])
    cluster.create(manifest("run-1"))
    assert [job.name for job in cluster.observe()] == ["run-1"]
    server.absent = {"/apis/kubeflow.org/v1"}
    server.cut_watches()
    eventually(lambda: cluster.traits().kinds == ("TrainJob", "Job"))
    eventually(lambda: cluster.observe() == [])


def test_a_kubeconfig_of_nowhere_starts_and_waits(open_cluster: Open, tmp_path: Path) -> None:
    cluster = open_cluster(config=kubeconfig(tmp_path / "nowhere", "http://127.0.0.1:9"))
    with pytest.raises(Unavailable):
        cluster.observe()
    with pytest.raises(Unavailable):
        cluster.create(manifest("run-1"))
    with pytest.raises(Unavailable):
        cluster.capacity()
    with pytest.raises(Unavailable):
        cluster.access_modes("runs")
    with pytest.raises(Unavailable):
        cluster.authenticate("token")
    (check,) = cluster.checks()
    assert not check.ok
    assert "address" in check.mend


def test_a_closed_connection_does_not_wake_anyone(connection: Connection) -> None:
    connection.close()
    connection.close()
