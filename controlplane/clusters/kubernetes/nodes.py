"""The nodes: what they have, what is free, and what would fit. Where nodes may not be listed, nothing is known."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from controlplane.clusters.base import Capacity, Unavailable
from controlplane.clusters.kubernetes.connection import Connection, Refused, Trouble
from controlplane.clusters.kubernetes.pages import Listing
from controlplane.clusters.kubernetes.resources import NODES, PODS, Resource

GPUS = ("nvidia.com/gpu", "amd.com/gpu")
GPU_TYPES = ("nvidia.com/gpu.product", "amd.com/gpu.product-name", "cloud.google.com/gke-accelerator")
BLIND = Capacity(0, 0, 0, None, 0, 0, 0, known=False)
LIVE = "status.phase!=Succeeded,status.phase!=Failed"
BLOCKING = ("NoSchedule", "NoExecute")
FRESH_S = 15.0
PAGE = 200


@dataclass(frozen=True)
class Node:
    """What a node has for pods, what of it is free, and what keeps pods off."""

    name: str
    has: Mapping[str, Decimal]
    free: Mapping[str, Decimal]
    taints: tuple[str, ...] = ()
    usable: bool = True
    gpu_type: str | None = None


@dataclass(frozen=True)
class Room:
    """The nodes as last listed."""

    nodes: tuple[Node, ...] = field(default_factory=tuple[Node, ...])

    def short(self, resource: str, asked: str) -> str:
        """How far the freest node is from having what is asked, or the largest one where none is that large."""
        wanted = parse_quantity(asked)
        free = max((node.free.get(resource, Decimal(0)) for node in self._usable()), default=Decimal(0))
        largest = max((node.has.get(resource, Decimal(0)) for node in self._usable()), default=Decimal(0))
        if largest < wanted:
            return f"more than any node has (at most {amount(resource, largest)})"
        if free >= wanted:
            return f"{amount(resource, free)} free on a node that lacks something else"
        return f"{amount(resource, free)} free on the freest node, {amount(resource, wanted - free)} missing"

    def fits(self, resources: Iterable[str]) -> str:
        """What of these could be had together on the node that has the most of the first one free."""
        names = list(resources)
        best = max(self._usable(), key=lambda node: [node.free.get(name, Decimal(0)) for name in names], default=None)
        if best is None:
            return ""
        return ", ".join(f"{amount(name, best.free.get(name, Decimal(0)))} {name}" for name in names)

    def taints(self) -> list[str]:
        """What keeps pods off, the commonest first."""
        return [taint for taint, _ in Counter(taint for node in self.nodes for taint in node.taints).most_common()]

    def capacity(self) -> Capacity:
        """The sum over the nodes that take pods."""
        usable = list(self._usable())
        largest = max(((_gpus(node.has), _cpus(node.has), _memory(node.has)) for node in usable), default=None)
        return Capacity(
            cpus=sum(_cpus(node.has) for node in usable),
            memory=sum(_memory(node.has) for node in usable),
            gpus=sum(_gpus(node.has) for node in usable),
            gpu_type=next((node.gpu_type for node in usable if node.gpu_type and _gpus(node.has)), None),
            free_cpus=sum(max(0, _cpus(node.free)) for node in usable),
            free_memory=sum(max(0, _memory(node.free)) for node in usable),
            free_gpus=sum(max(0, _gpus(node.free)) for node in usable),
            largest=(largest[1], largest[2], largest[0]) if largest else None,
        )

    def _usable(self) -> Iterator[Node]:
        return (node for node in self.nodes if node.usable)


class Nodes:
    """The nodes, listed when asked and kept for `FRESH_S`."""

    def __init__(self, connection: Connection, clock: Callable[[], float] = time.monotonic) -> None:
        self._connection, self._clock = connection, clock
        self._lock = threading.Lock()
        self._room: Room | None = None
        self._at = float("-inf")

    def last(self) -> Room | None:
        """What was seen last, however old; None where nothing was. Asks nobody."""
        return self._room

    def room(self) -> Room | None:
        """The nodes as they are; None where they may not be listed. Raises Unavailable."""
        with self._lock:
            if self._clock() - self._at > FRESH_S:
                self._room = self._list()
                self._at = self._clock()
            return self._room

    def _list(self) -> Room | None:
        try:
            nodes = list(self._all(NODES, {}))
        except Refused as error:
            if error.status == 403:
                return None
            raise Unavailable(str(error)) from error
        except Trouble as error:
            raise Unavailable(str(error)) from error
        used = self._used()
        return Room(tuple(read_node(node, used.get(node["metadata"]["name"], {})) for node in nodes))

    def _used(self) -> dict[str, dict[str, Decimal]]:
        """What pods hold of each node; those of our namespace alone where no more may be listed."""
        for namespace in (None, self._connection.namespace):
            try:
                return _sums(self._all(PODS, {"fieldSelector": LIVE}, namespace))
            except Refused as error:
                if error.status != 403:
                    raise Unavailable(str(error)) from error
            except Trouble as error:
                raise Unavailable(str(error)) from error
        return {}

    def _all(self, resource: Resource, query: Mapping[str, str], namespace: str | None = None) -> Listing:
        return Listing(self._connection, resource.path(namespace), query, PAGE)


def _sums(pods: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Decimal]]:
    """By node, what its pods hold. There may be thousands: none is kept."""
    used: dict[str, dict[str, Decimal]] = {}
    for spec in (pod["spec"] for pod in pods if pod["spec"].get("nodeName")):
        held = used.setdefault(spec["nodeName"], {})
        for name, value in requests_of(spec).items():
            held[name] = held.get(name, Decimal(0)) + value
    return used


def read_node(raw: Mapping[str, Any], used: Mapping[str, Decimal]) -> Node:
    """A node, `used` being the sum of its pods' requests."""
    spec, status, labels = raw.get("spec") or {}, raw.get("status") or {}, raw["metadata"].get("labels") or {}
    has = {name: parse_quantity(value) for name, value in (status.get("allocatable") or {}).items()}
    free = {name: value - used.get(name, Decimal(0)) for name, value in has.items()}
    taints = tuple(_taint(taint) for taint in spec.get("taints") or () if taint.get("effect") in BLOCKING)
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions") or ())
    return Node(
        name=raw["metadata"]["name"],
        has=has,
        free=free,
        taints=taints,
        usable=ready and not spec.get("unschedulable"),
        gpu_type=next((labels[label] for label in GPU_TYPES if label in labels), None),
    )


def requests_of(spec: Mapping[str, Any]) -> dict[str, Decimal]:
    """What a pod holds of its node: its containers' requests, and one of the node's places for pods."""
    total = {"pods": Decimal(1)}
    for container in spec.get("containers") or ():
        asked = container.get("resources") or {}
        for name, value in {**asked.get("limits", {}), **asked.get("requests", {})}.items():
            total[name] = total.get(name, Decimal(0)) + parse_quantity(value)
    return total


def amount(resource: str, value: Decimal) -> str:
    """For people: memory in Mi or Gi."""
    if resource in ("memory", "ephemeral-storage") or resource.startswith("hugepages"):
        size, unit = (value / (1 << 30), "Gi") if value >= 1 << 30 else (value / (1 << 20), "Mi")
        return f"{size:.1f}{unit}".replace(".0", "")
    return f"{value:f}".rstrip("0").rstrip(".") if "." in f"{value:f}" else f"{value:f}"


def _taint(raw: Mapping[str, Any]) -> str:
    value = f"={raw['value']}" if raw.get("value") else ""
    return f"{raw['key']}{value}:{raw['effect']}"


def _cpus(what: Mapping[str, Decimal]) -> int:
    return int(what.get("cpu", 0))


def _memory(what: Mapping[str, Decimal]) -> int:
    return int(what.get("memory", 0))


def _gpus(what: Mapping[str, Decimal]) -> int:
    """Whole GPUs, and MIG slices where a node is cut up."""
    slices = sum(int(value) for name, value in what.items() if name.startswith("nvidia.com/mig-"))
    return sum(int(what.get(name, 0)) for name in GPUS) + slices
