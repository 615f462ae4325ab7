"""What is taken on, what is refused, and what waits for what."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from controlplane.clusters.base import Cluster, NameConflict, Rejected, Unavailable
from controlplane.clusters.decisions import DECISIONS
from controlplane.clusters.local import LocalCluster, Machine
from controlplane.domain.placement import Scheduling
from controlplane.render import render
from tests.controlplane.clusters.local.conftest import MACHINE, Bench, until

MASTER = ("spec", "pytorchReplicaSpecs", "Master")
POD = (*MASTER, "template", "spec")
CONTAINER = (*POD, "containers", 0)
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(1000)
"""
SAVES = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(143)))
print("ready", flush=True)
time.sleep(1000)
"""


def waiting(bench: Bench, name: str) -> str:
    """Why the object is queued, once it is known."""
    return str(until(lambda: (found := bench.pods(name)[0]).message != "its turn" and found.message))


def test_the_local_cluster_is_a_cluster(bench: Bench) -> None:
    cluster: Cluster = bench.cluster
    assert cluster.name == "local"


def test_what_does_not_fit_waits_and_says_for_what(bench: Bench) -> None:
    bench.create("first", cpus_per_node=2)
    bench.pod("first", "Running")
    bench.create("second", cpus_per_node=4)
    assert waiting(bench, "second") == "needs 4 cpus, 2 free"
    assert bench.pods("second")[0].reason == "Queued"
    bench.cluster.delete("first")
    bench.pod("second", "Running")


def test_nothing_overtakes_the_head_of_the_queue(bench: Bench) -> None:
    for name, cpus in (("running", 3), ("large", 2), ("small", 1)):
        bench.create(name, cpus_per_node=cpus)
    assert waiting(bench, "small") == "waits behind large"
    bench.cluster.delete("running")
    bench.in_phase("large", "Running")
    bench.in_phase("small", "Running")
    # Their processes start side by side; the order is that in which they were admitted.
    admitted = [bench.root / "objects" / name / "admitted.json" for name in ("large", "small")]
    large, small = (path.stat().st_mtime_ns for path in admitted)
    assert large <= small


def test_in_a_long_line_one_that_begins_is_news_to_the_next_alone_and_each_decision_is_measured(bench: Bench) -> None:
    bench.create("running", cpus_per_node=4)
    bench.pod("running", "Running")
    for number in range(12):
        bench.create(f"w{number}", cpus_per_node=4)
    until(lambda: bench.pods("w11")[0].message == "waits behind w10")
    before = {job.name: job.pods for job in bench.cluster.observe()}
    decisions = decided()
    bench.cluster.delete("running")
    bench.pod("w0", "Running")
    assert waiting(bench, "w1") == "needs 4 cpus, 0 free"
    changed = {job.name for job in bench.cluster.observe() if job.pods != before.get(job.name)}
    assert changed == {"w0", "w1"}
    assert decided() >= decisions + 2


def decided() -> float:
    """How many decisions this process has measured."""
    (family,) = DECISIONS.collect()
    return next(one.value for one in family.samples if one.name == "teragpt_scheduling_seconds_count")


def test_the_pods_of_an_object_start_together_or_not_at_all(bench: Bench) -> None:
    bench.create("one", cpus_per_node=1)
    bench.create("gang", nodes=2, cpus_per_node=2)
    assert waiting(bench, "gang") == "needs 4 cpus, 3 free"
    assert all(pod.phase == "Pending" for pod in bench.pods("gang"))
    bench.cluster.delete("one")
    bench.in_phase("gang", "Running")


def test_memory_is_given_out_too(bench: Bench) -> None:
    bench.create("one", memory_per_node=6 << 30)
    bench.create("two", memory_per_node=3 << 30)
    assert waiting(bench, "two") == "needs 3 GiB of memory, 2 free"


def test_what_asks_for_nothing_waits_for_nothing(bench: Bench) -> None:
    bench.create("all", cpus_per_node=4)
    bench.create("none", cpus_per_node=None)
    bench.pod("none", "Running")


def test_an_end_makes_room_before_the_object_is_deleted(bench: Bench) -> None:
    bench.create("short", "pass", cpus_per_node=4)
    bench.create("next", cpus_per_node=4)
    bench.pod("next", "Running")
    assert bench.pods("short")[0].phase == "Succeeded"


def test_deleting_what_waits_never_starts_it(bench: Bench) -> None:
    bench.create("running", cpus_per_node=4)
    bench.create("waiting")
    waiting(bench, "waiting")
    bench.cluster.delete("waiting")
    bench.gone("waiting")
    end = json.loads((bench.root / "ended/waiting/waiting-master-0/exit.json").read_text())
    assert (end["reason"], end["started"]) == ("Deleted", None)


def test_a_machine_that_has_become_smaller_fails_what_it_can_never_hold(bench: Bench) -> None:
    bench.create("running", cpus_per_node=4)
    bench.pod("running", "Running")
    bench.create("large", cpus_per_node=4)
    waiting(bench, "large")
    bench.reopen(machine=Machine(cpus=2, memory=8 << 30))
    assert bench.pod("large", "Failed").reason == "Rejected"
    assert bench.cluster.capacity().free_cpus == 0


def test_capacity_is_what_there_is_less_what_runs(bench: Bench) -> None:
    before = bench.cluster.capacity()
    assert (before.cpus, before.memory, before.gpus, before.gpu_type) == (4, 8 << 30, 0, None)
    bench.create("one", nodes=2, cpus_per_node=1, memory_per_node=1 << 30)
    bench.in_phase("one", "Running")
    after = bench.cluster.capacity()
    assert (after.free_cpus, after.free_memory) == (2, 6 << 30)


@pytest.mark.parametrize(
    ("changes", "path", "allowed"),
    [
        ({"cpus_per_node": 5}, "Master.template.spec.containers[0].resources.limits.cpu", "at most the 4 cpus"),
        ({"memory_per_node": 9 << 30}, "resources.limits.memory", "at most the 8 GiB of memory"),
        ({"gpus_per_node": 1}, "resources.limits.nvidia.com/gpu", "at most the 0 gpus"),
        ({"cpus_per_node": 2, "nodes": 3}, "spec.pytorchReplicaSpecs.Worker.replicas", "within the 4 cpus"),
    ],
)
def test_what_the_machine_can_never_hold_is_refused(
    bench: Bench, changes: dict[str, Any], path: str, allowed: str
) -> None:
    with pytest.raises(Rejected) as caught:
        bench.create("large", **changes)
    problem = caught.value.problems[0]
    assert problem.path.endswith(path)
    assert allowed in problem.allowed
    assert not bench.cluster.observe()


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("spec", "runPolicy", "suspend"), True, "spec.runPolicy.suspend"),
        (("spec", "elasticPolicy"), {"maxReplicas": 2}, "spec.elasticPolicy"),
        (("spec", "nprocPerNode"), "auto", "spec.nprocPerNode"),
        ((*MASTER, "restartPolicy"), "OnFailure", "spec.pytorchReplicaSpecs.Master.restartPolicy"),
        ((*MASTER, "replicas"), None, "spec.pytorchReplicaSpecs.Master.replicas"),
        ((*POD, "hostNetwork"), True, "spec.pytorchReplicaSpecs.Master.template.spec.hostNetwork"),
        ((*POD, "initContainers"), [], "spec.pytorchReplicaSpecs.Master.template.spec.initContainers"),
        ((*POD, "volumes"), [{"name": "dshm", "hostPath": {"path": "/"}}], "template.spec.volumes[0].hostPath"),
        ((*CONTAINER, "workingDir"), "/x", "template.spec.containers[0].workingDir"),
        ((*CONTAINER, "envFrom"), [], "template.spec.containers[0].envFrom"),
        ((*CONTAINER, "resources"), {"limits": {"rdma/ib": "1"}}, "limits.rdma/ib"),
        ((*CONTAINER, "resources"), {"limits": {"nvidia.com/gpu": "500m"}}, "limits.nvidia.com/gpu"),
        (("kind",), "TrainJob", "kind"),
        (("metadata", "name"), "../up", "metadata.name"),
    ],
)
def test_fields_that_are_not_honoured_are_refused_by_path(
    bench: Bench, path: tuple[str | int, ...], value: object, named: str
) -> None:
    manifest: Any = render(bench.attempt("x", "pass"))
    parent = manifest
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    with pytest.raises(Rejected) as caught:
        bench.cluster.create(manifest)
    assert any(named in problem.path for problem in caught.value.problems)
    assert not bench.cluster.observe()


@pytest.mark.parametrize(("name", "key"), [("x", "other"), ("foreign", "token")])
def test_only_the_objects_own_secret_is_read(bench: Bench, name: str, key: str) -> None:
    manifest = render(bench.attempt("x", "pass"))
    env = manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]["env"]
    env.append({"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": name, "key": key}}})
    with pytest.raises(Rejected, match=r"env\[\d+\]\.valueFrom\.secretKeyRef.*the object's own secret, x: token"):
        bench.cluster.create(manifest, {"token": "1"})


def test_the_same_object_again_is_adopted_also_after_its_deletion(bench: Bench) -> None:
    uid = bench.create("once", "print('ran')")
    assert bench.create("once", "print('ran')") == uid
    bench.pod("once", "Succeeded")
    bench.cluster.delete("once")
    bench.gone("once")
    assert bench.create("once", "print('ran')") == uid
    assert not bench.cluster.observe()
    assert bench.cluster.logs("once", "once-master-0") == b"ran\n"


@pytest.mark.parametrize("changes", [{"run_id": "run_other"}, {"attempt": 2}, {"spec_hash": "other"}])
@pytest.mark.parametrize("deleted", [False, True])
def test_another_object_of_that_name_is_a_conflict(bench: Bench, changes: dict[str, Any], deleted: bool) -> None:
    bench.create("taken", "pass")
    bench.pod("taken", "Succeeded")
    if deleted:
        bench.cluster.delete("taken")
        bench.gone("taken")
    with pytest.raises(NameConflict, match="taken"):
        bench.create("taken", "pass", **changes)


def test_a_forgotten_name_is_free(bench: Bench) -> None:
    bench.create("name", "pass")
    bench.cluster.forget("name")
    assert bench.job("name"), "what has not been deleted is not forgotten"
    bench.cluster.delete("name")
    bench.gone("name")
    bench.cluster.forget("name")
    bench.cluster.forget("name")
    bench.create("name", "pass", attempt=2)
    bench.pod("name", "Succeeded")


def test_deleting_an_unknown_name_or_another_uid_is_success(bench: Bench) -> None:
    bench.create("kept")
    bench.pod("kept", "Running")
    bench.cluster.delete("absent")
    bench.cluster.delete("kept", "another uid")
    job = bench.job("kept")
    assert job
    assert not job.deleting
    bench.cluster.delete("kept", job.uid)
    bench.gone("kept")


def test_a_deletion_is_seen_at_once(bench: Bench) -> None:
    bench.create("slow", "import signal, time; signal.signal(15, signal.SIG_IGN); print(); time.sleep(99)", grace_s=1)
    until(lambda: bench.cluster.logs("slow", "slow-master-0"))
    bench.cluster.delete("slow")
    bench.cluster.delete("slow")
    job = bench.job("slow")
    assert job
    assert job.deleting
    assert job.pods[0].phase == "Running"
    bench.gone("slow")


def test_watchers_are_woken_by_changes(bench: Bench) -> None:
    woken = threading.Event()
    bench.cluster.watch(woken.set)
    bench.create("one", "pass")
    bench.pod("one", "Succeeded")
    assert woken.wait(5)


def test_concurrent_objects_get_ports_of_their_own_that_no_one_else_can_bind(bench: Bench) -> None:
    held = []
    for name in ("a", "b", "c"):
        bench.create(name)
        bench.pod(name, "Running")
        held.append(json.loads((bench.root / "objects" / name / "admitted.json").read_text())["port"])
    assert len(set(held)) == 3
    bench.reopen()
    for port in held:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("127.0.0.1", port))
            server.listen()


def test_a_port_is_free_again_after_the_last_pod(bench: Bench) -> None:
    bench.create("one", "pass")
    bench.pod("one", "Succeeded")
    port = json.loads((bench.root / "objects/one/admitted.json").read_text())["port"]

    def bound() -> bool:
        with socket.socket() as other:
            try:
                other.bind(("127.0.0.1", port))
            except OSError:
                return False
            return True

    until(bound)


def test_a_folder_is_followed_by_one_control_plane(bench: Bench) -> None:
    with pytest.raises(Unavailable, match="another control plane"):
        LocalCluster(bench.root, machine=MACHINE)


def test_a_folder_that_cannot_be_written_is_unavailable(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.create("running")
    bench.pod("running", "Running")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "object.json")

    with monkeypatch.context() as patch:
        patch.setattr("controlplane.clusters.local.shim.write_atomically", full)
        with pytest.raises(Unavailable, match="No space left"):
            bench.create("new")
        with pytest.raises(Unavailable, match="No space left"):
            bench.cluster.delete("running")
    assert [path.name for path in (bench.root / "objects").iterdir()] == ["running"]
    bench.create("new")
    bench.pod("new", "Running")


def test_an_admission_that_cannot_be_written_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.clusters.local.cluster.AGAIN_S", 0.05)

    def full(*_: object) -> socket.socket:
        raise OSError("no free port for the rendezvous")

    with monkeypatch.context() as patch:
        patch.setattr("controlplane.clusters.local.ports.reserve", full)
        bench.create("new")
        assert waiting(bench, "new") == "no free port for the rendezvous"
    bench.pod("new", "Running")


def test_the_end_of_a_waiting_pod_is_known_even_where_it_cannot_be_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench.create("running", cpus_per_node=4)
    bench.create("waiting")
    waiting(bench, "waiting")
    real = os.rename

    def rename(source: str, target: str) -> None:
        if Path(target).name == "exit.json":
            raise OSError(28, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.rename", rename)
        bench.cluster.delete("waiting")
        bench.gone("waiting")
    assert "the end of pod waiting-master-0 could not be written" in caplog.text


def scheduled(priority: str) -> Scheduling:
    return Scheduling(priority=priority)


def test_a_lower_priority_stops_with_time_for_a_checkpoint_and_says_for_whom(bench: Bench) -> None:
    bench.create("low", SAVES, cpus_per_node=3, scheduling=scheduled("low"))
    bench.pod("low", "Running")
    until(lambda: "ready" in bench.told("low"))
    bench.create("normal", cpus_per_node=1)
    bench.pod("normal", "Running")
    bench.create("high", cpus_per_node=2, scheduling=scheduled("high"))
    pod = bench.pod("low", "Failed")
    assert (pod.exit_code, pod.reason, pod.message) == (143, "Preempted", "it gave way to high")
    assert "saved" in bench.told("low")
    bench.pod("high", "Running")
    bench.pod("normal", "Running")


def test_what_gives_way_is_remembered_over_a_restart_of_the_control_plane(bench: Bench) -> None:
    bench.create("low", DEAF, cpus_per_node=3, scheduling=scheduled("low"), grace_s=3)
    until(lambda: "ready" in bench.told("low"))
    bench.create("high", cpus_per_node=2, scheduling=scheduled("high"))
    assert waiting(bench, "high") == "needs 2 cpus, 1 free; low gives way"
    bench.reopen()
    pod = bench.pod("low", "Failed")
    assert (pod.exit_code, pod.reason) == (137, "Preempted")
    bench.pod("high", "Running")


def test_equals_share_the_machine_by_the_label_user(bench: Bench) -> None:
    bench.create("first", cpus_per_node=3, labels={"user": "ann"})
    bench.pod("first", "Running")
    bench.create("second", cpus_per_node=4, labels={"user": "ann"})
    bench.create("third", cpus_per_node=3, labels={"user": "bob"})
    until(lambda: bench.pods("second")[0].message == "waits behind third")
    bench.cluster.delete("first")
    bench.pod("third", "Running")


def test_a_priority_that_nobody_knows_is_refused(bench: Bench) -> None:
    with pytest.raises(Rejected, match=r"priorityClassName.*'urgent'.*low, normal, high"):
        bench.create("one", scheduling=scheduled("urgent"))
