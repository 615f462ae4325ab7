"""Nodes and pods that kwok plays, for tests of thousands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.conftest import Cluster, Namespace

TAINT = {"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}
TOLERATION = {"key": "kwok.x-k8s.io/node", "operator": "Exists"}


@pytest.fixture
def fake_node(fake_nodes: Cluster) -> Iterator[str]:
    room = {"cpu": "64", "memory": "1Ti", "pods": "1000", "nvidia.com/gpu": "8"}
    metadata = {
        "name": "fake-0",
        "annotations": {"kwok.x-k8s.io/node": "fake"},
        "labels": {"kubernetes.io/os": "linux"},
    }
    node = {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": [TAINT]}}
    fake_nodes.apply(node | {"status": {"capacity": room, "allocatable": room}})
    yield "fake-0"
    fake_nodes.kubectl("delete", "node", "fake-0")


@pytest.mark.alone
def test_a_pod_runs_on_a_fake_node_with_eight_gpus(namespace: Namespace, fake_node: str) -> None:
    gpus = {"limits": {"nvidia.com/gpu": "8"}}
    namespace.start("large", "true", resources=gpus, tolerations=[TOLERATION], nodeName=fake_node)
    namespace.wait("pod/large", "condition=Ready", 30)
    assert namespace.read("pod", "large")["spec"]["nodeName"] == fake_node
