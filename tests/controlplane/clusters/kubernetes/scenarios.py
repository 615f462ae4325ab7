"""What the Kubernetes backend must do, whoever answers: run against the small server and against a real API server."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from controlplane.clusters.base import Manifest, NameConflict, ObservedPod, Rejected
from controlplane.clusters.kubernetes import KubernetesCluster
from controlplane.clusters.kubernetes.connection import Connection
from controlplane.clusters.kubernetes.resources import PODS
from tests.controlplane.clusters.kubernetes.hands import Hands, eventually, manifest, observed

Make = Callable[..., Manifest]


class Scenarios:
    """`cluster` is the backend under test, `hands` does what a cluster does by itself."""

    @pytest.fixture
    def make(self, cluster: KubernetesCluster, hands: Hands) -> Iterator[Make]:
        """Makes an attempt's object, which is gone again after the test."""
        made: list[Manifest] = []

        def make(*, create: bool = True, **options: Any) -> Manifest:
            name = f"run-{uuid.uuid4().hex[:10]}-1"
            one = manifest(name, run=f"run_{name}", **options)
            made.append(one)
            if create:
                cluster.create(one)
            return one

        yield make
        for one in made:
            hands.remove_pods(one)
            hands.remove(one)

    def pods(self, cluster: KubernetesCluster, of: Manifest) -> tuple[ObservedPod, ...]:
        return tuple(observed(cluster, of["metadata"]["name"]).pods)

    def see(self, cluster: KubernetesCluster, of: Manifest, *phases: str) -> tuple[ObservedPod, ...]:
        """The pods, once they are in these phases."""

        def look() -> tuple[ObservedPod, ...]:
            pods = self.pods(cluster, of)
            assert [pod.phase for pod in pods] == list(phases), pods
            return pods

        return eventually(look)

    # --- objects ----------------------------------------------------------------------------------------------------

    def test_an_object_is_seen_at_once_with_the_pods_that_are_to_come(
        self, cluster: KubernetesCluster, make: Make
    ) -> None:
        one = make(nodes=3, create=False)
        uid = cluster.create(one)
        job = observed(cluster, one["metadata"]["name"])
        assert (job.uid, job.run_id, job.attempt) == (uid, one["metadata"]["labels"]["teragpt.io/run-id"], 1)
        assert (job.spec_hash, job.deleting) == ("hash", False)
        assert [(pod.role, pod.index, pod.uid, pod.phase) for pod in job.pods] == [
            ("master", 0, "", "Pending"),
            ("worker", 0, "", "Pending"),
            ("worker", 1, "", "Pending"),
        ]
        assert job.pods[0].reason == "PodsNotCreated"
        assert job.pods[0].message == "0 of 3 pods have been created"

    @pytest.mark.parametrize("kind", ["PyTorchJob", "Job"])
    def test_a_repeated_creation_adopts_the_object(self, cluster: KubernetesCluster, make: Make, kind: str) -> None:
        one = make(kind=kind, create=False)
        assert cluster.create(one) == cluster.create(one)

    def test_an_attempt_whose_object_was_deleted_is_not_run_again(
        self, cluster: KubernetesCluster, hands: Hands, make: Make
    ) -> None:
        one = make(create=False)
        uid = cluster.create(one)
        hands.remove(one)
        eventually(lambda: not [job for job in cluster.observe() if job.uid == uid])
        assert cluster.create(one) == uid
        assert not [job for job in cluster.observe() if job.uid == uid]

    def test_a_name_that_belongs_to_another_attempt_is_a_conflict(self, cluster: KubernetesCluster, make: Make) -> None:
        one = make()
        other = json.loads(json.dumps(one))
        other["metadata"]["labels"]["teragpt.io/attempt"] = "2"
        with pytest.raises(NameConflict, match=one["metadata"]["name"]):
            cluster.create(other)

    def test_a_dry_run_makes_nothing(self, cluster: KubernetesCluster, make: Make) -> None:
        one = make(create=False)
        cluster.dry_run(one)
        assert one["metadata"]["name"] not in [job.name for job in cluster.observe()]

    def test_a_kind_that_nobody_renders_is_refused(self, cluster: KubernetesCluster, make: Make) -> None:
        one = {**make(create=False), "kind": "CronJob"}
        with pytest.raises(Rejected, match=r"kind: got 'kubeflow\.org/v1 CronJob'"):
            cluster.create(one)

    def test_a_deletion_is_seen_and_then_the_object_is_gone(
        self, cluster: KubernetesCluster, hands: Hands, make: Make
    ) -> None:
        one = make()
        name = one["metadata"]["name"]
        (pod,) = hands.make_pods(one, [0])
        hands.hold(one)
        hands.run(pod)
        self.see(cluster, one, "Running")
        cluster.delete(name, "another uid")
        cluster.delete("nobody", None)
        assert not observed(cluster, name).deleting
        cluster.delete(name, observed(cluster, name).uid)
        assert eventually(lambda: observed(cluster, name).deleting)
        cluster.delete(name)  # a second time, while it goes on
        hands.remove_pod(pod)
        (end,) = self.see(cluster, one, "Failed")
        assert end.reason == "Deleted"
        hands.remove(one)
        eventually(lambda: name not in [job.name for job in cluster.observe()])
        cluster.delete(name)

    @pytest.mark.parametrize("kind", ["PyTorchJob", "Job"])
    def test_pods_that_an_object_left_when_it_was_deleted_are_ended_with_it(
        self, cluster: KubernetesCluster, hands: Hands, make: Make, connection: Connection, kind: str
    ) -> None:
        one = make(kind=kind, nodes=2)
        name, uid = one["metadata"]["name"], observed(cluster, one["metadata"]["name"]).uid
        other = make(kind=kind)
        pods = [*hands.make_pods(one, [0, 1]), *hands.make_pods(other, [0])]
        for pod in pods:
            hands.run(pod)
        self.see(cluster, one, "Running", "Running")
        self.see(cluster, other, "Running")
        hands.orphan(one, pods[:2])
        eventually(lambda: observed(cluster, name).gone)
        assert not observed(cluster, name).deleting
        self.see(cluster, one, "Running", "Running")
        cluster.delete(name, uid)
        eventually(lambda: observed(cluster, name).deleting)
        found = {pod: connection.call("GET", PODS.path(connection.namespace, pod))["metadata"] for pod in pods}
        assert ["deletionTimestamp" in found[pod] for pod in pods] == [True, True, False]
        cluster.delete(name, uid)
        for pod in pods[:2]:
            hands.remove_pod(pod)
        eventually(lambda: name not in [job.name for job in cluster.observe()])

    # --- pods -------------------------------------------------------------------------------------------------------

    def test_a_run_from_its_first_pod_to_success(self, cluster: KubernetesCluster, hands: Hands, make: Make) -> None:
        woken = threading.Event()
        cluster.watch(woken.set)
        one = make(nodes=2)
        master, worker = hands.make_pods(one, [0, 1])
        pods = self.see(cluster, one, "Pending", "Pending")
        eventually(lambda: all(pod.uid for pod in self.pods(cluster, one)))
        assert woken.is_set()
        assert [pod.name for pod in pods] == [master, worker]
        hands.run(master)
        hands.run(worker)
        running = self.see(cluster, one, "Running", "Running")
        assert running[0].node == "node-a"
        assert running[0].started_at is not None
        hands.end(master, 0)
        hands.end(worker, 0)
        done = self.see(cluster, one, "Succeeded", "Succeeded")
        assert (done[0].exit_code, done[0].reason) == (0, None)
        assert done[0].finished_at is not None

    def test_a_worker_that_the_operator_removed_after_the_masters_success_has_succeeded(
        self, cluster: KubernetesCluster, hands: Hands, make: Make
    ) -> None:
        one = make(nodes=2)
        master, worker = hands.make_pods(one, [0, 1])
        hands.run(master)
        hands.run(worker)
        hands.end(master, 0)
        self.see(cluster, one, "Succeeded", "Running")
        hands.remove_pod(worker)
        self.see(cluster, one, "Succeeded", "Succeeded")

    def test_pods_of_a_job_keep_the_names_that_kubernetes_gave_them(
        self, cluster: KubernetesCluster, hands: Hands, make: Make
    ) -> None:
        one = make(kind="Job", nodes=2)
        name = one["metadata"]["name"]
        assert [pod.name for pod in self.pods(cluster, one)] == [f"{name}-0", f"{name}-1"]
        hands.make_pods(one, [1, 0])
        eventually(lambda: all(pod.uid for pod in self.pods(cluster, one)))
        assert [pod.name for pod in self.pods(cluster, one)] == [f"{name}-0-abcde", f"{name}-1-abcde"]
        assert [pod.role for pod in self.pods(cluster, one)] == ["master", "worker"]

    def test_how_a_pod_ended(self, cluster: KubernetesCluster, hands: Hands, make: Make) -> None:
        one = make(nodes=4)
        pods = hands.make_pods(one, range(4))
        for pod in pods:
            hands.run(pod)
        told = {"rank": 0, "code": 1, "reason": "DiskFull", "step": 7}
        hands.end(pods[0], 1, json.dumps(told))
        hands.end(pods[1], 137, reason="OOMKilled")
        hands.end(pods[2], 139, "a last line")
        target = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "room"}
        hands.end(pods[3], 143, conditions=[target])
        ends = self.see(cluster, one, "Failed", "Failed", "Failed", "Failed")
        assert (ends[0].reason, ends[0].exit_code, ends[0].termination, ends[0].message) == ("Error", 1, told, None)
        assert (ends[1].reason, ends[1].exit_code, ends[1].signal) == ("OOMKilled", 137, "SIGKILL")
        assert (ends[2].signal, ends[2].termination, ends[2].message) == ("SIGSEGV", None, "a last line")
        assert (ends[3].reason, ends[3].exit_code, ends[3].message) == ("Preempted", 143, f"node {ends[3].node}: room")

    def test_a_pod_that_ended_before_it_ran(self, cluster: KubernetesCluster, hands: Hands, make: Make) -> None:
        one = make(nodes=3)
        master, worker, evicted = hands.make_pods(one, [0, 1, 2])
        for pod in (master, worker, evicted):
            hands.bind(pod)
        hands.status(master, phase="Failed", reason="UnexpectedAdmissionError", message="no device")
        hands.status(evicted, phase="Failed", reason="Evicted", message="The node was low on resource: memory.")
        ended = {"terminated": {"exitCode": 1, "reason": "Error"}}
        hands.state(worker, "Failed", init=ended, waiting={"reason": "PodInitializing"})
        ends = self.see(cluster, one, "Failed", "Failed", "Failed")
        assert (ends[0].reason, ends[0].message, ends[0].exit_code) == ("UnexpectedAdmissionError", "no device", None)
        assert (ends[1].reason, ends[1].exit_code) == ("InitError", None)
        assert ends[1].message == "init container init-pytorch ended with exit code 1: Error"
        low = f"node {ends[2].node}: The node was low on resource: memory."
        assert (ends[2].reason, ends[2].message) == ("Evicted", low)

    def test_a_pod_that_vanished_is_to_come_again_without_its_uid(
        self, cluster: KubernetesCluster, hands: Hands, make: Make
    ) -> None:
        one = make(nodes=2)
        master, _ = hands.make_pods(one, [0, 1])
        hands.run(master)
        self.see(cluster, one, "Running", "Pending")
        hands.remove_pod(master)
        pods = self.see(cluster, one, "Pending", "Pending")
        assert (pods[0].uid, pods[0].message) == ("", "1 of 2 pods have been created")

    # --- waiting ----------------------------------------------------------------------------------------------------

    def waits(self, cluster: KubernetesCluster, of: Manifest, reason: str, index: int = 0) -> str:
        """The message, once a pod waits for this reason."""

        def look() -> str:
            pod = self.pods(cluster, of)[index]
            assert (pod.phase, pod.reason) == ("Pending", reason), pod
            return pod.message or ""

        return eventually(look)

    def test_waiting_for_room_says_what_is_missing(self, cluster: KubernetesCluster, hands: Hands, make: Make) -> None:
        one = make()
        (pod,) = hands.make_pods(one, [0])
        said = "0/3 nodes are available: 2 Insufficient cpu, 3 Insufficient memory. preemption: 0/3 nodes are available"
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": said}
        hands.status(pod, phase="Pending", conditions=[condition])
        message = self.waits(cluster, one, "Unschedulable")
        assert "asks for 4 cpu" in message
        assert "asks for 8Gi memory" in message
        assert message.endswith(
            "the scheduler says: 0/3 nodes are available: 2 Insufficient cpu, 3 Insufficient memory."
        )

    def test_waiting_for_a_volume(self, cluster: KubernetesCluster, hands: Hands, make: Make) -> None:
        one = make()
        (pod,) = hands.make_pods(one, [0])
        said = '0/1 nodes are available: persistentvolumeclaim "runs" not found.'
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": said}
        hands.status(pod, phase="Pending", conditions=[condition])
        assert self.waits(cluster, one, "VolumeNotBound").startswith(
            'a volume is not ready: persistentvolumeclaim "runs" not found'
        )

    def test_waiting_for_an_image_names_it_and_the_error(
        self, cluster: KubernetesCluster, hands: Hands, make: Make
    ) -> None:
        one = make()
        (pod,) = hands.make_pods(one, [0])
        hands.bind(pod)
        hands.state(pod, "Pending", waiting={"reason": "ErrImagePull", "message": "not found"})
        assert self.waits(cluster, one, "ImagePullBackOff") == "image trainer cannot be pulled: not found"

    def test_waiting_for_a_configuration(self, cluster: KubernetesCluster, hands: Hands, make: Make) -> None:
        one = make()
        (pod,) = hands.make_pods(one, [0])
        hands.bind(pod)
        hands.state(pod, "Pending", waiting={"reason": "CreateContainerConfigError", "message": 'secret "x" not found'})
        assert self.waits(cluster, one, "CreateContainerConfigError") == 'secret "x" not found'

    def test_placed_pods_say_how_far_they_are(self, cluster: KubernetesCluster, hands: Hands, make: Make) -> None:
        one = make(nodes=2)
        master, worker = hands.make_pods(one, [0, 1])
        hands.bind(master)
        hands.bind(worker)
        hands.state(master, "Pending", waiting={"reason": "ContainerCreating"})
        hands.state(worker, "Pending", init={"running": {}}, waiting={"reason": "PodInitializing"})
        self.waits(cluster, one, "ContainerCreating")
        assert "master" in self.waits(cluster, one, "InitWaitingForMaster", 1)
        hands.event(master, "Pod", "Pulling", 'Pulling image "trainer"')
        assert self.waits(cluster, one, "ImagePulling") == 'Pulling image "trainer"'
        hands.event(master, "Pod", "FailedMount", 'MountVolume.SetUp failed for volume "runs"')
        assert "runs" in self.waits(cluster, one, "VolumeNotMounted")

    @pytest.mark.parametrize(
        ("said", "reason", "told"),
        [
            (
                'pods "x" is forbidden: exceeded quota: team, requested: cpu=4, used: cpu=8, limited: cpu=10',
                "QuotaExceeded",
                "the namespace's quota team does not allow its pods: requested: cpu=4, used: cpu=8, limited: cpu=10",
            ),
            (
                'pods "x" is forbidden: failed quota: team: must specify limits.cpu for: pytorch',
                "QuotaExceeded",
                "the namespace's quota team does not allow its pods: must specify limits.cpu for: pytorch",
            ),
            (
                'pods "x" is forbidden: maximum memory usage per Container is 64Mi, but limit is 8Gi',
                "LimitRange",
                "a LimitRange of the namespace does not allow its pods: maximum memory usage per Container is 64Mi",
            ),
            (
                'pods "x" is forbidden: cpu max limit to request ratio per Pod is 2, but provided ratio is 4.000000',
                "LimitRange",
                "max limit to request ratio per Pod is 2",
            ),
            (
                'Pod "x" is invalid: spec.a: Invalid value: "2": must be less than or equal to cpu limit of 1',
                "LimitRange",
                'does not allow its pods: spec.a: Invalid value: "2": must be less than or equal to cpu limit of 1',
            ),
            ('pods "x" is forbidden: violates PodSecurity "restricted:latest"', "PodSecurity", "Pod Security refuses"),
            ('admission webhook "a.b" denied the request: no', "AdmissionDenied", "admission rules refuse its pods"),
            ('failed calling webhook "a.b": connection refused', "WebhookUnavailable", "does not answer"),
            ("the server is out of order", "FailedCreate", "cannot be created: the server is out of order"),
        ],
    )
    def test_pods_that_may_not_be_made(
        self, cluster: KubernetesCluster, hands: Hands, make: Make, said: str, reason: str, told: str
    ) -> None:
        one = make(nodes=2)
        hands.event(one["metadata"]["name"], "PyTorchJob", "FailedCreatePod", said)
        assert told in self.waits(cluster, one, reason)

    def test_waiting_in_a_queue_of_kueue(self, cluster: KubernetesCluster, hands: Hands, make: Make) -> None:
        one = make(nodes=2)
        hands.suspend(one, "research")
        assert "queue research" in self.waits(cluster, one, "WaitingForQuota")

    # --- objects that ended -----------------------------------------------------------------------------------------

    def test_an_objects_own_success_stands_for_pods_that_are_gone(
        self, cluster: KubernetesCluster, hands: Hands, make: Make
    ) -> None:
        one = make(nodes=2)
        hands.condition(one, "Succeeded", "PyTorchJobSucceeded", "done")
        self.see(cluster, one, "Succeeded", "Succeeded")
