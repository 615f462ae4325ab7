from __future__ import annotations

from typing import Any

import pytest

from controlplane.clusters.kubernetes import KubernetesCluster
from controlplane.clusters.kubernetes import cluster as module
from controlplane.clusters.kubernetes.connection import Connection
from controlplane.clusters.kubernetes.kueue import read_workload, workloads
from tests.controlplane.clusters.kubernetes.hands import Hands, Open, eventually, manifest, observed
from tests.controlplane.clusters.kubernetes.server import ApiServer

PATH = "/apis/kueue.x-k8s.io/v1beta2/default/workloads"


def workload(server: ApiServer, name: str, owner: str, *, queue: str = "research", **more: Any) -> None:
    condition = {"type": "QuotaReserved", "status": "False", "message": "insufficient unused quota for cpu"}
    conditions = more.pop("conditions", [condition])
    metadata = {"name": name, "ownerReferences": [{"uid": owner}], "creationTimestamp": f"2026-11-24T12:00:0{name}Z"}
    spec = {"queueName": queue, **more}
    server.create(PATH, {"metadata": metadata, "spec": spec, "status": {"conditions": conditions}}, dry=False)


def test_who_waits_in_a_queue_is_told_the_place_and_the_reason(
    server: ApiServer, hands: Hands, cluster: KubernetesCluster
) -> None:
    one = manifest("run-1", nodes=2)
    uid = cluster.create(one)
    hands.suspend(one, "research")
    workload(server, "1", "someone")
    workload(server, "2", uid)
    workload(server, "3", "someone urgent", priority=100)
    workload(server, "4", "elsewhere", queue="other")
    workload(server, "5", "gone", conditions=[{"type": "Finished", "status": "True"}])

    def look() -> bool:
        pod = observed(cluster, "run-1").pods[0]
        assert pod.reason == "WaitingForQuota"
        return pod.message == "place 3 of 3 in queue research: insufficient unused quota for cpu"

    eventually(look)


def test_an_object_that_kueue_does_not_know_yet_names_its_queue(hands: Hands, cluster: KubernetesCluster) -> None:
    one = manifest("run-1")
    cluster.create(one)
    hands.suspend(one, "research")
    eventually(lambda: observed(cluster, "run-1").pods[0].message == "queue research has not admitted it yet")


def test_an_admitted_object_that_is_still_suspended_is_in_no_line(
    server: ApiServer, hands: Hands, cluster: KubernetesCluster
) -> None:
    one = manifest("run-1")
    uid = cluster.create(one)
    hands.suspend(one, "research")
    workload(server, "1", uid, conditions=[{"type": "QuotaReserved", "status": "True", "message": "reserved"}])
    eventually(lambda: observed(cluster, "run-1").pods[0].message == "queue research: reserved")


@pytest.mark.parametrize("reason", ["Inadmissible", "Misconfigured", "Suspended"])
def test_who_waits_for_no_quota_has_no_place_in_the_line(reason: str) -> None:
    """As of a queue that does not exist, or is held."""
    message = "LocalQueue nobody doesn't exist"
    quota = {"type": "QuotaReserved", "status": "False", "reason": reason, "message": message}
    one = read_workload({"metadata": {}, "spec": {"queueName": "nobody"}, "status": {"conditions": [quota]}})
    assert (one.waits, one.message) == (False, message)


def test_who_is_evicted_is_told_why_as_long_as_its_pods_end_and_then_what_it_waits_for() -> None:
    def told(reserved: str, message: str) -> str:
        quota = {"type": "QuotaReserved", "status": reserved, "message": message}
        evicted = {"type": "Evicted", "status": "True", "message": "Preempted"}
        return read_workload({"metadata": {}, "status": {"conditions": [quota, evicted]}}).message

    assert told("True", "Quota reserved in ClusterQueue team") == "Preempted"
    assert told("False", "insufficient unused quota for cpu") == "insufficient unused quota for cpu"


def test_kueue_places_gangs_as_a_whole(server: ApiServer, open_cluster: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.02)
    server.absent = {"/apis/kueue.x-k8s.io/v1beta2"}
    cluster = open_cluster()
    eventually(lambda: cluster.observe() == [])
    assert not cluster.traits().queues
    server.absent = set()
    eventually(lambda: cluster.traits().queues)
    server.absent = {"/apis/kueue.x-k8s.io/v1beta2"}
    eventually(lambda: not cluster.traits().queues)


def test_workloads_that_may_not_be_read_are_not(server: ApiServer, connection: Connection) -> None:
    server.forbidden = {("watch", "workloads")}
    assert workloads(connection) is None
