"""Shares of the machine: what a pod asks for, and what is left beside those that have been admitted. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from controlplane.clusters.local.machine import Machine
from controlplane.render.pod import GPU, Container

KINDS = ("cpu", "memory", GPU)
UNITS = {
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate(("", "k", "M", "G", "T", "P"))},
    **{suffix: Decimal(1024) ** power for power, suffix in enumerate(("", "Ki", "Mi", "Gi", "Ti", "Pi"))},
    "m": Decimal("0.001"),
}


def quantity(text: str) -> Decimal:
    """A Kubernetes quantity as a number: "500m" is 0.5, "4Gi" 4294967296."""
    number = text.rstrip("kKMGTPim")
    return Decimal(number) * UNITS[text[len(number) :]]


@dataclass(frozen=True)
class Share:
    """CPUs, bytes of memory, number of GPUs."""

    cpus: Decimal = Decimal(0)
    memory: Decimal = Decimal(0)
    gpus: Decimal = Decimal(0)

    def __add__(self, other: Share) -> Share:
        return Share(self.cpus + other.cpus, self.memory + other.memory, self.gpus + other.gpus)

    def __sub__(self, other: Share) -> Share:
        return Share(self.cpus - other.cpus, self.memory - other.memory, self.gpus - other.gpus)


def whole_cores(share: Share) -> int:
    """Cores that a pod has to itself; one that asked for a part of one has none, and runs on all."""
    return 0 if share.cpus % 1 else int(share.cpus)


def total(shares: Iterable[Share]) -> Share:
    """All of them together."""
    return sum(shares, Share())


def whole(machine: Machine) -> Share:
    """All that the machine has."""
    return Share(Decimal(machine.cpus), Decimal(machine.memory), Decimal(len(machine.gpus)))


def share_of(container: Container) -> Share:
    """What the container requests, or is limited to; what neither names is not accounted, as in Kubernetes."""
    if container.resources is None:
        return Share()
    asked = {**container.resources.limits, **(container.resources.requests or {})}
    return Share(*(quantity(asked.get(kind, "0")) for kind in KINDS))


def memory_limit(container: Container) -> int | None:
    """Bytes of memory beyond which the container is killed."""
    limit = container.resources and container.resources.limits.get("memory")
    return int(quantity(limit)) if limit else None


def lacks(needed: Share, free: Share) -> list[tuple[str, str, str]]:
    """Where `needed` exceeds `free`: the resource's name in a manifest, what is needed, what is free, for people."""
    kinds = (
        ("cpu", needed.cpus, free.cpus, Decimal(1), " cpus"),
        ("memory", needed.memory, free.memory, UNITS["Gi"], " GiB of memory"),
        (GPU, needed.gpus, free.gpus, Decimal(1), " gpus"),
    )
    return [
        (kind, _plain(need / unit) + name, _plain(max(left, Decimal(0)) / unit) + name)
        for kind, need, left, unit, name in kinds
        if need > left
    ]


def _plain(value: Decimal) -> str:
    return f"{round(value, 2).normalize():f}"
