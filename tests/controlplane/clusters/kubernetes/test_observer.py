"""What depends on the time, and what no API server needs to be asked for."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from controlplane.clusters.base import Kind, ObservedPod
from controlplane.clusters.kubernetes.events import EventRecord, read_event
from controlplane.clusters.kubernetes.nodes import Room, read_node
from controlplane.clusters.kubernetes.observer import Observer, Sources
from controlplane.clusters.kubernetes.records import (
    Condition,
    Key,
    ObjectRecord,
    Owner,
    PodRecord,
    State,
    pod_name,
    read_object,
    read_pod,
)
from controlplane.clusters.pods import Pods
from tests.controlplane.clusters.kubernetes.hands import manifest

T0 = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
KEY = Key("run_1", 1)


class World:
    """An observer with a clock that stands, and events that a test writes."""

    def __init__(self) -> None:
        self.now = T0
        self.events: list[EventRecord] = []
        self.room: Room | None = None
        self.admission = ""
        sources = Sources(lambda *_: self.events, lambda: self.room, lambda _: self.admission)
        self.observer = Observer(sources, "us", lambda: self.now)

    def pods(self) -> tuple[ObservedPod, ...]:
        (job,) = self.observer.observe()
        return tuple(job.pods)


@pytest.fixture
def world() -> World:
    return World()


def job(kind: Kind = "PyTorchJob", **changes: Any) -> ObjectRecord:
    raw = manifest("run-1", kind=kind, nodes=2)
    raw["metadata"] |= {"uid": "u", "creationTimestamp": T0.isoformat()}
    record = read_object(kind, raw)
    assert record is not None
    return replace(record, **changes)


def pod(index: int = 0, **changes: Any) -> PodRecord:
    labels = manifest("run-1")["metadata"]["labels"]
    labels |= {"training.kubeflow.org/replica-type": "worker" if index else "master"}
    labels |= {"training.kubeflow.org/replica-index": str(max(0, index - 1))}
    metadata = {"name": pod_name("PyTorchJob", "run-1", index), "uid": f"p{index}", "labels": labels}
    raw = {
        "metadata": metadata,
        "spec": {"nodeName": "node-a", "containers": [{"name": "pytorch", "image": "trainer"}]},
    }
    record = read_pod(raw)
    assert record is not None
    return replace(record, **changes)


def test_an_operator_that_sleeps_is_asked_after(world: World) -> None:
    world.observer.take_object("run-1", job())
    assert world.pods()[0].reason == "PodsNotCreated"
    world.now += timedelta(seconds=42)
    found = world.pods()[0]
    assert found.reason == "OperatorAbsent"
    assert (
        found.message
        == "nothing has taken up PyTorchJob run-1 since 2026-11-24T12:00:00Z: does the training operator run?"
    )
    world.observer.take_object("run-1", job(started=True))
    assert world.pods()[0].reason == "PodsNotCreated"


def test_an_object_that_nobody_takes_up_looks_the_same_from_look_to_look(world: World) -> None:
    """Thousands may: a view that counted the seconds would be news of each, each second."""
    world.observer.take_object("run-1", job())
    world.pods()
    world.now += timedelta(seconds=21)
    (absent,) = world.observer.observe()
    assert absent.pods[0].reason == "OperatorAbsent"
    world.now += timedelta(hours=1)
    assert world.observer.observe()[0] is absent


def test_each_pod_that_comes_is_counted_for_those_that_do_not_exist_yet(world: World) -> None:
    world.observer.take_object("run-1", job(nodes=3))
    assert world.pods()[2].message == "0 of 3 pods have been created"
    world.observer.take_pod("run-1-master-0", pod(main=State("running", started=T0)))
    assert world.pods()[2].message == "1 of 3 pods have been created"


def test_events_about_a_trainjobs_own_job_are_about_its_object(world: World) -> None:
    world.observer.take_object("run-1", job("TrainJob"))
    assert world.pods()[0].reason == "PodsNotCreated"
    world.events = [EventRecord("run-1-node-0", "FailedCreate", "exceeded quota: q, requested: pods=2", T0)]
    world.observer.take_event("run-1-node-0")
    assert world.pods()[0].reason == "QuotaExceeded"


def test_news_of_nodes_is_news_of_pods_that_no_node_takes(world: World) -> None:
    lacks = Condition("Unschedulable", "0/1 nodes are available: 1 Insufficient cpu.", T0)
    world.observer.take_object("run-1", job(nodes=1))
    world.observer.take_pod("run-1-master-0", pod(node="", unscheduled=lacks, asks=(("cpu", "4"),)))
    assert world.pods()[0].message == "asks for 4 cpu; the scheduler says: 0/1 nodes are available: 1 Insufficient cpu."
    assert world.observer.lacks_room()
    status = {"allocatable": {"cpu": "2"}, "conditions": [{"type": "Ready", "status": "True"}]}
    raw = {"metadata": {"name": "n"}, "status": status}
    world.room = Room((read_node(raw, {}),))
    assert "more than any node has (at most 2)" in str(world.pods()[0].message)
    world.observer.take_pod("run-1-master-0", pod(main=State("running", started=T0)))
    world.pods()
    assert not world.observer.lacks_room()


def test_news_of_kueue_is_news_of_what_it_holds_back(world: World) -> None:
    world.observer.take_object("run-1", job(suspended=True, queue="q"))
    assert world.pods()[0].message == "queue q has not admitted it yet"
    world.admission = "place 2 of 3 in queue q"
    world.observer.take_queues()
    assert world.pods()[0].message == "place 2 of 3 in queue q"


@pytest.mark.parametrize(("code", "word"), [(143, "Preempted"), (137, "Preempted"), (1, "Error"), (2, "Error")])
def test_pods_that_end_as_kueue_suspends_their_object_were_preempted_unless_they_failed(
    world: World, code: int, word: str
) -> None:
    world.admission = "queue q: Preempted to accommodate a workload"
    world.observer.take_object("run-1", job(suspended=True, queue="q", nodes=1))
    world.observer.take_pod("run-1-master-0", pod(phase="Failed", main=State("terminated", "Error", "", code)))
    found = world.pods()[0]
    assert (found.reason, found.exit_code) == (word, code)
    assert (found.message == f"Kueue suspended it ({world.admission})") == (word == "Preempted")


def test_someone_elses_suspension_is_said(world: World) -> None:
    world.observer.take_object("run-1", job(suspended=True))
    assert world.pods()[0].reason == "Suspended"


def test_a_pod_whose_node_is_lost_has_ended_when_its_grace_period_is_long_over(world: World) -> None:
    running = State("running", started=T0)
    world.observer.take_object("run-1", job())
    world.observer.take_pod("run-1-master-0", pod(main=running, deleted=T0 + timedelta(seconds=30)))
    assert world.pods()[0].phase == "Running"
    world.now += timedelta(seconds=89)
    assert world.pods()[0].phase == "Running"
    world.now += timedelta(seconds=2)
    found = world.pods()[0]
    assert (found.phase, found.reason, found.exit_code) == ("Failed", "NodeLost", None)
    assert found.message == "node node-a has not ended it since its deletion"


def test_pods_of_a_failed_object_are_waited_for_a_moment(world: World) -> None:
    """The pods' own ends say more than the object's; their news may come later."""
    failed = Condition("PyTorchJobFailed", "it failed because 1 Worker replica(s) failed", T0)
    world.observer.take_object("run-1", job(failed=failed, started=True))
    assert [found.phase for found in world.pods()] == ["Pending", "Pending"]
    world.now += timedelta(seconds=6)
    ended = world.pods()
    assert [(found.phase, found.reason, found.message) for found in ended] == [("Failed", *failed[:2])] * 2


@pytest.mark.parametrize(
    ("reason", "status_reason", "word"),
    [
        ("DeletionByTaintManager", "", "NodeLost"),
        ("DeletionByPodGC", "", "NodeLost"),
        ("EvictionByEvictionAPI", "", "Evicted"),
        ("TerminationByKubelet", "Terminated", "Shutdown"),
        ("TerminationByKubelet", "Evicted", "Evicted"),
        ("", "NodeShutdown", "Shutdown"),
        ("", "Preempting", "Preempted"),
        ("", "DeadlineExceeded", "DeadlineExceeded"),
        ("SomethingNew", "", "Error"),
    ],
)
def test_who_ended_a_pod_that_did_not_end_by_itself(world: World, reason: str, status_reason: str, word: str) -> None:
    ended = State("terminated", "Error", exit_code=143, started=T0, finished=T0)
    disrupted = Condition(reason, "told", T0) if reason else None
    world.observer.take_object("run-1", job())
    world.observer.take_pod("run-1-master-0", pod(main=ended, reason=status_reason, disrupted=disrupted))
    found = world.pods()[0]
    assert (found.phase, found.reason, found.exit_code, found.signal) == ("Failed", word, 143, "SIGTERM")
    assert found.message == ("node node-a: told" if reason and word != "Error" else None)


def test_an_interruption_of_a_pod_that_succeeded_changes_nothing(world: World) -> None:
    done = State("terminated", "Completed", exit_code=0, started=T0, finished=T0)
    world.observer.take_object("run-1", job())
    world.observer.take_pod("run-1-master-0", pod(main=done, disrupted=Condition("EvictionByEvictionAPI", "", T0)))
    assert (world.pods()[0].phase, world.pods()[0].reason) == ("Succeeded", None)


def test_pods_without_containers_states(world: World) -> None:
    world.observer.take_object("run-1", job())
    world.observer.take_pod("run-1-master-0", pod(phase="Succeeded"))
    world.observer.take_pod("run-1-worker-0", pod(1, phase="Failed"))
    assert [(found.phase, found.reason, found.exit_code) for found in world.pods()] == [
        ("Succeeded", None, 0),
        ("Failed", "Unknown", None),
    ]


def test_an_exit_code_that_names_no_signal(world: World) -> None:
    world.observer.take_object("run-1", job())
    ended = State("terminated", "Error", message="[1, 2]", exit_code=255, finished=T0)
    world.observer.take_pod("run-1-master-0", pod(main=ended))
    found = world.pods()[0]
    assert (found.signal, found.termination, found.message) == (None, None, "[1, 2]")


def test_a_worker_that_is_being_removed_after_the_masters_success_fails_nothing(world: World) -> None:
    done, killed = State("terminated", exit_code=0, finished=T0), State("terminated", exit_code=137, finished=T0)
    world.observer.take_object("run-1", job())
    world.observer.take_pod("run-1-master-0", pod(main=done))
    world.observer.take_pod("run-1-worker-0", pod(1, main=killed))
    assert [found.phase for found in world.pods()] == ["Succeeded", "Failed"]  # it failed by itself
    world.observer.take_pod("run-1-worker-0", pod(1, main=killed, deleted=T0))
    worker = world.pods()[1]
    assert (worker.phase, worker.exit_code, worker.reason, worker.signal) == ("Succeeded", 0, None, None)


def test_of_two_pods_for_one_node_the_first_is_shown(world: World) -> None:
    """Whatever replaces a pod ends the attempt: the second would hide that."""
    world.observer.take_object("run-1", job("Job"))
    first, second = pod(created=T0, uid="first"), pod(created=T0 + timedelta(seconds=1), uid="second")
    world.observer.take_pod("run-1-0-bbbbb", second)
    world.observer.take_pod("run-1-0-aaaaa", first)
    assert world.pods()[0].uid == "first"
    world.observer.take_pod("run-1-0-aaaaa", None)
    assert world.pods()[0].uid == "second"


def test_a_placed_pod_whose_sandbox_fails_says_so(world: World) -> None:
    world.observer.take_object("run-1", job())
    world.observer.take_pod("run-1-master-0", pod(main=State("waiting", "ContainerCreating")))
    world.events = [EventRecord("run-1-master-0", "FailedCreatePodSandBox", "no address left", T0)]
    found = world.pods()[0]
    assert (found.reason, found.message) == ("SandboxFailed", "no address left")


def test_a_pod_before_the_schedulers_first_look_and_one_behind_a_gate(world: World) -> None:
    world.observer.take_object("run-1", job())
    world.observer.take_pod("run-1-master-0", pod(node=""))
    gated = Condition("SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates", T0)
    world.observer.take_pod("run-1-worker-0", pod(1, node="", unscheduled=gated))
    assert [found.reason for found in world.pods()] == ["Scheduling", "SchedulingGated"]


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (State("waiting", "ImagePullBackOff", "Back-off"), "ImagePullBackOff"),
        (State("waiting", "PodInitializing"), "PodInitializing"),
        (State("running"), "InitWaitingForMaster"),
        (State("terminated", "Error", exit_code=1), "PodInitializing"),
    ],
)
def test_an_init_container_on_its_way(world: World, state: State, reason: str) -> None:
    world.observer.take_object("run-1", job())
    world.observer.take_pod("run-1-master-0", pod(init=(("init-pytorch", state),)))
    assert world.pods()[0].reason == reason


def test_what_is_settled_is_not_made_anew(world: World) -> None:
    world.observer.take_object("run-1", job(nodes=1))
    world.observer.take_pod("run-1-master-0", pod(main=State("running", started=T0)))
    first = world.observer.observe()[0]
    world.observer.take_event("run-9")
    assert world.observer.observe()[0] is first
    world.observer.take_event("run-1-master-0")
    assert world.observer.observe()[0] is not first


def test_of_many_pods_only_the_one_with_news_is_made_anew(world: World) -> None:
    world.observer.take_object("run-1", job(nodes=3))
    for index in range(3):
        world.observer.take_pod(pod_name("PyTorchJob", "run-1", index), pod(index, main=State("running", started=T0)))
    before = world.pods()
    ended = State("terminated", "Error", exit_code=1, finished=T0)
    world.observer.take_pod("run-1-worker-0", pod(1, main=ended))
    after = world.pods()
    assert [now == then for now, then in zip(after, before, strict=True)] == [True, False, True]
    assert after[1].exit_code == 1


STATES = (
    None,
    State("waiting", "ContainerCreating"),
    State("running", started=T0),
    State("running", started=T0 + timedelta(seconds=1)),
    State("terminated", exit_code=0, finished=T0),
    State("terminated", "Error", exit_code=137, finished=T0),
)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_seen_piece_by_piece_is_what_is_seen_at_once(seed: int) -> None:
    chance, several, there = random.Random(seed), 4, dict[str, PodRecord]()
    world = World()
    world.observer.take_object("run-1", job(nodes=several))
    for _ in range(40):
        for _ in range(chance.randint(1, 3)):
            index = chance.randrange(several)
            name = pod_name("PyTorchJob", "run-1", index) + chance.choice(("", "", "", "-b"))
            if chance.random() < 0.1:
                there.pop(name, None)
            else:
                before = there.get(name) or pod(index, name=name, uid=f"{name}-{chance.random()}")
                state = chance.choice(STATES[1:4] if index == 0 or chance.random() < 0.8 else STATES)
                deleted = T0 + timedelta(seconds=chance.randint(-30, 30)) if index and chance.random() < 0.1 else None
                there[name] = replace(before, main=state, deleted=deleted)
            world.observer.take_pod(name, there.get(name))
        world.now += timedelta(seconds=chance.choice((0, 0, 5, 90)))
        fresh = World()
        fresh.now = world.now
        fresh.observer.take_object("run-1", job(nodes=several))
        for name, record in there.items():
            fresh.observer.take_pod(name, record)
        assert world.pods() == fresh.pods()


def test_news_of_one_pod_leaves_the_moment_at_which_another_is_overdue(world: World) -> None:
    world.observer.take_object("run-1", job())
    world.observer.take_pod("run-1-master-0", pod(main=State("running", started=T0)))
    world.observer.take_pod("run-1-worker-0", pod(1, main=State("running", started=T0), deleted=T0))
    assert [found.phase for found in world.pods()] == ["Running", "Running"]
    world.observer.take_pod("run-1-master-0", pod(main=State("running", started=T0 + timedelta(seconds=1))))
    assert [found.phase for found in world.pods()] == ["Running", "Running"]
    world.now += timedelta(seconds=61)
    assert [found.phase for found in world.pods()] == ["Running", "Failed"]


def test_of_pods_that_run_no_view_is_kept(world: World) -> None:
    """There are thousands of them, for days; what they look like is made of their records whenever somebody looks."""
    record = pod(main=State("running", started=T0))
    world.observer.take_object("run-1", job())
    world.observer.take_pod("run-1-master-0", record)
    (seen,) = world.observer.observe()
    assert isinstance(seen.pods, Pods)
    assert seen.pods.kept[0] is record
    assert (seen.pods[0], *seen.pods[1:]) == tuple(seen.pods)
    assert (seen.pods[0].phase, seen.pods[0].started_at, seen.pods[1].phase) == ("Running", T0, "Pending")
    world.observer.take_object("run-1", job())
    (again,) = world.observer.observe()
    assert again is not seen
    assert again == seen
    world.observer.take_pod("run-1-master-0", pod(main=State("running", started=T0 + timedelta(seconds=1))))
    assert world.observer.observe()[0] != seen


def test_a_pod_that_starts_is_made_anew_on_news_alone(world: World) -> None:
    world.observer.take_object("run-1", job(nodes=1))
    world.observer.take_pod("run-1-master-0", pod(main=State("waiting", "ContainerCreating")))
    first = world.observer.observe()[0]
    world.now += timedelta(seconds=60)
    assert world.observer.observe()[0] is first
    world.events = [EventRecord("run-1-master-0", "Pulling", "pulling the image", T0)]
    world.observer.take_event("run-1-master-0")
    assert world.pods()[0].reason == "ImagePulling"


def test_the_masters_success_changes_what_became_of_workers_that_were_seen_before(world: World) -> None:
    killed = State("terminated", exit_code=137, finished=T0)
    world.observer.take_object("run-1", job())
    world.observer.take_pod("run-1-master-0", pod(main=State("running", started=T0)))
    world.observer.take_pod("run-1-worker-0", pod(1, main=killed, deleted=T0))
    assert [found.phase for found in world.pods()] == ["Running", "Failed"]
    world.observer.take_pod("run-1-master-0", pod(main=State("terminated", exit_code=0, finished=T0)))
    assert [found.phase for found in world.pods()] == ["Succeeded", "Succeeded"]


def test_a_pod_that_went_with_its_name_and_came_again_is_another_one(world: World) -> None:
    running = State("running", started=T0)
    world.observer.take_object("run-1", job(nodes=1))
    world.observer.take_pod("run-1-master-0", pod(main=running))
    assert world.pods()[0].uid == "p0"
    world.observer.take_pod("run-1-master-0", None)
    assert (world.pods()[0].uid, world.pods()[0].phase) == ("", "Pending")
    world.observer.take_pod("run-1-master-0", pod(main=running, uid="second"))
    assert (world.pods()[0].uid, world.pods()[0].phase) == ("second", "Running")


def test_events_are_read_whoever_wrote_them() -> None:
    about = {"kind": "Pod", "name": "p"}
    base = {"metadata": {"creationTimestamp": "2026-11-24T12:00:00Z"}, "involvedObject": about, "reason": "FailedMount"}
    plain, series = read_event(base), read_event({**base, "series": {"lastObservedTime": "2026-11-24T12:05:00.5Z"}})
    assert plain is not None
    assert series is not None
    assert (plain.last, plain.message) == (T0, "")
    assert series.last == T0 + timedelta(minutes=5, milliseconds=500)
    assert read_event({**base, "reason": "Scheduled"}) is None
    assert read_event({**base, "involvedObject": {"kind": "Node", "name": "n"}}) is None


@pytest.mark.parametrize(
    ("kind", "owner", "name"),
    [("PyTorchJob", "run-1", "run-1"), ("Job", "run-1", "run-1"), ("Job", "run-1-node-0", "run-1")],
)
def test_an_object_that_is_gone_is_being_deleted_for_as_long_as_a_pod_of_it_works(
    world: World, kind: str, owner: str, name: str
) -> None:
    """Deletion in the background, kubectl's own, leaves pods their grace period: the next attempt waits for that."""
    raw = {"metadata": {"name": "pod", "uid": "p", "labels": manifest("run-1")["metadata"]["labels"]}, "spec": {}}
    raw["metadata"]["labels"] |= {"training.kubeflow.org/replica-type": "master"}
    raw["metadata"]["labels"] |= {"training.kubeflow.org/replica-index": "0"}
    raw["metadata"]["ownerReferences"] = [
        {"kind": "Other", "name": "x", "uid": "x"},
        {"kind": kind, "name": owner, "uid": "u", "controller": True},
    ]
    raw["spec"] = {"containers": [{"name": "pytorch"}]}
    record = read_pod(raw)
    assert record is not None
    working = replace(record, main=State("running"))
    world.observer.take_object(name, job())
    world.observer.take_pod("pod", working)
    world.observer.take_object(name, None)
    (seen,) = world.observer.observe()
    assert (seen.name, seen.uid, seen.run_id, seen.attempt, seen.deleting) == (name, "u", KEY.run_id, 1, True)
    assert [one.phase for one in seen.pods] == ["Running"]
    world.observer.take_pod("pod", None)
    assert world.observer.observe() == []


def test_pods_of_another_installations_object_are_left_alone(world: World) -> None:
    world.observer.take_object("run-1", job(instance="them"))
    world.observer.take_pod("run-1-master-0", pod(owner=Owner("PyTorchJob", "run-1", "u")))
    assert world.observer.observe() == []


@pytest.mark.parametrize(
    ("labels", "owner"),
    [
        ({"batch.kubernetes.io/job-name": "run-1"}, Owner("Job", "run-1", "")),
        ({"training.kubeflow.org/job-name": "run-1"}, Owner("PyTorchJob", "run-1", "")),
        ({"batch.kubernetes.io/job-name": "run-1-node-0"}, Owner("TrainJob", "run-1", "")),
    ],
    ids=["Job", "PyTorchJob", "TrainJob"],
)
def test_pods_that_their_object_left_work_on_and_nobody_ends_them(
    world: World, labels: dict[str, str], owner: Owner
) -> None:
    raw = manifest("run-1")["metadata"] | {"name": "pod", "uid": "p", "creationTimestamp": T0.isoformat()}
    raw["labels"] |= labels | {"batch.kubernetes.io/job-completion-index": "1"}
    record = read_pod({"metadata": raw, "spec": {"containers": [{"name": "pytorch"}]}})
    assert record is not None
    assert record.owner == owner
    world.observer.take_pod("pod", replace(record, main=State("running")))
    (seen,) = world.observer.observe()
    assert (seen.name, seen.run_id, seen.attempt, seen.gone, seen.deleting) == ("run-1", KEY.run_id, 1, True, False)
    assert [one.phase for one in seen.pods] == ["Failed", "Running"], "the first one went with its object"
    assert [one.uid for one in world.observer.left_by("run-1")] == ["p"]
    assert world.observer.left_by("run-2") == []
    world.observer.take_pod("pod", replace(record, main=State("running"), deleted=T0))
    (seen,) = world.observer.observe()
    assert (seen.gone, seen.deleting) == (True, True)
    assert world.observer.left_by("run-1") == []
    world.observer.take_object("run-1", job())
    assert not world.observer.observe()[0].gone


def test_a_pod_that_nobody_owns_is_no_attempt(world: World) -> None:
    world.observer.take_pod("run-1-master-0", pod())
    assert world.observer.observe() == []
