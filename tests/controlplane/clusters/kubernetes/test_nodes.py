from __future__ import annotations

from typing import Any

import pytest

from controlplane.clusters.base import Capacity, Unavailable
from controlplane.clusters.kubernetes import KubernetesCluster, resources
from controlplane.clusters.kubernetes import cluster as module
from controlplane.clusters.kubernetes.connection import Connection
from controlplane.clusters.kubernetes.nodes import Nodes, Room, amount, read_node
from tests.controlplane.clusters.kubernetes.hands import Hands, Open, eventually, manifest, observed
from tests.controlplane.clusters.kubernetes.server import ApiServer, status

NODES = "/api/v1//nodes"
PODS = "/api/v1//pods"
LACKS = (
    "0/2 nodes are available: 1 Insufficient cpu, 1 Insufficient nvidia.com/gpu, 1 node(s) had untolerated taint(s)."
)


def node(server: ApiServer, name: str, *, ready: bool = True, taints: Any = (), labels: Any = None, **has: str) -> None:
    allocatable = {key.replace("__", "/").replace("_", "."): value for key, value in has.items()}
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    metadata = {"name": name, "labels": labels or {}}
    raw = {"metadata": metadata, "spec": {"taints": list(taints)}}
    server.create(NODES, {**raw, "status": {"allocatable": allocatable, "conditions": conditions}}, dry=False)


def pod(server: ApiServer, name: str, where: str, *containers: dict[str, Any]) -> None:
    spec = {"nodeName": where, "containers": [{"resources": one} for one in containers]}
    server.create(PODS, {"metadata": {"name": name}, "spec": spec}, dry=False)


def fill(server: ApiServer) -> None:
    """Two nodes, one with GPUs, half of it taken; and one that is away."""
    product = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    node(server, "big", cpu="16", memory="64Gi", pods="110", nvidia_com__gpu="8", labels=product)
    node(server, "small", cpu="4", memory="8Gi", pods="110")
    node(server, "away", ready=False, cpu="512", memory="4Ti", pods="110")
    pod(server, "a", "big", {"requests": {"cpu": "2500m", "memory": "1Gi"}}, {"limits": {"cpu": "1"}})
    pod(server, "b", "big", {"limits": {"nvidia.com/gpu": "3"}, "requests": {"cpu": "500m"}})
    pod(server, "c", "small", {})


def test_capacity_is_what_nodes_have_less_what_pods_ask(server: ApiServer, cluster: KubernetesCluster) -> None:
    fill(server)
    assert cluster.capacity() == Capacity(
        cpus=20,
        memory=72 << 30,
        gpus=8,
        gpu_type="NVIDIA-H100-80GB-HBM3",
        free_cpus=16,
        free_memory=71 << 30,
        free_gpus=5,
        largest=(16, 64 << 30, 8),
    )


def test_nodes_are_listed_once_for_many_questions(server: ApiServer, cluster: KubernetesCluster) -> None:
    for _ in range(3):
        cluster.capacity()
    assert sum(request.path == "/api/v1/nodes" for request in server.requests) == 1


def test_where_nodes_may_not_be_listed_nothing_is_known(server: ApiServer, cluster: KubernetesCluster) -> None:
    server.forbidden = {("list", "nodes")}
    assert not cluster.capacity().known


def test_where_only_our_pods_may_be_listed_these_alone_count(server: ApiServer, connection: Connection) -> None:
    fill(server)
    server.fail(status(403, "Forbidden", "no"), path="^/api/v1/pods$")
    room = Nodes(connection).room()
    assert room is not None
    assert room.capacity().free_cpus == 20


@pytest.mark.parametrize("path", ["^/api/v1/nodes$", "^/api/v1/pods$"])
def test_a_server_that_does_not_answer_is_not_a_small_cluster(
    server: ApiServer, connection: Connection, path: str
) -> None:
    server.fail(status(500, "InternalError", "no"), path=path)
    with pytest.raises(Unavailable):
        Nodes(connection).room()


def test_long_lists_of_nodes_are_read_page_by_page(server: ApiServer, connection: Connection) -> None:
    for number in range(5):
        node(server, f"node-{number}", cpu="2", memory="1Gi")
    server.page = 2
    room = Nodes(connection).room()
    assert room is not None
    assert room.capacity().cpus == 10


def test_slices_of_gpus_count_as_gpus() -> None:
    status = {"allocatable": {"nvidia.com/mig-1g.10gb": "7", "amd.com/gpu": "2", "cpu": "1", "memory": "1Gi"}}
    ready = {**status, "conditions": [{"type": "Ready", "status": "True"}]}
    labels = {"amd.com/gpu.product-name": "MI300X"}
    room = Room((read_node({"metadata": {"name": "n", "labels": labels}, "status": ready}, {}),))
    assert (room.capacity().gpus, room.capacity().gpu_type) == (9, "MI300X")
    assert Room().capacity().largest is None
    assert Room().fits(["cpu"]) == ""


def test_cordoned_nodes_take_no_pods(connection: Connection, server: ApiServer) -> None:
    node(server, "here", cpu="2", memory="1Gi")
    raw = {"metadata": {"name": "cordoned"}, "spec": {"unschedulable": True}, "status": {"allocatable": {"cpu": "9"}}}
    server.create(NODES, raw, dry=False)
    room = Nodes(connection).room()
    assert room is not None
    assert room.capacity().cpus == 2


@pytest.mark.parametrize(
    ("resource", "size", "told"),
    [
        ("memory", str(3 << 30), "3Gi"),
        ("memory", str(3 << 29), "1.5Gi"),
        ("memory", str(5 << 20), "5Mi"),
        ("cpu", "0.250", "0.25"),
        ("cpu", "10", "10"),
        ("nvidia.com/gpu", "100", "100"),
    ],
)
def test_amounts_are_written_for_people(resource: str, size: str, told: str) -> None:
    from decimal import Decimal

    assert amount(resource, Decimal(size)) == told


def test_waiting_for_room_says_how_much_is_missing_and_what_would_fit(
    server: ApiServer, hands: Hands, open_cluster: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NODES_S", 0.0)
    cluster = open_cluster()
    eventually(lambda: cluster.observe() == [])
    fill(server)
    taint = {"key": "team", "value": "vision", "effect": "NoSchedule"}
    node(server, "theirs", taints=[taint, {"key": "soft", "effect": "PreferNoSchedule"}], cpu="1", memory="1Gi")
    one = manifest("run-1", cpus_per_node=14, memory_per_node=1 << 30, gpus_per_node=16)
    cluster.create(one)
    (name,) = hands.make_pods(one, [0])
    asks = {"cpu": "14", "nvidia.com/gpu": "16"}

    def more(raw: dict[str, Any]) -> None:
        raw["spec"]["containers"][0]["resources"] = {"requests": asks}

    hands._edit(resources.PODS, name, more)
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": LACKS}
    hands.status(name, phase="Pending", conditions=[condition])

    def look() -> bool:
        message = observed(cluster, "run-1").pods[0].message or ""
        assert message.split("; ") == [
            "asks for 14 cpu, 12 free on the freest node, 2 missing",
            "asks for 16 nvidia.com/gpu, more than any node has (at most 8)",
            "nodes are kept for others by the taint team=vision:NoSchedule",
            "on one node would fit: 12 cpu, 5 nvidia.com/gpu",
            f"the scheduler says: {LACKS}",
        ], message
        return True

    eventually(look)
