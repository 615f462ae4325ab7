"""Several namespaces of one Kubernetes cluster as one cluster: each is watched by itself, under a Role of its own.

Names of objects are unique over all of them, since each holds its run's id; so an object is asked for by name alone.
What is known of one namespace and not of another is not known: nothing is taken for gone on half of the answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

from controlplane.clusters.base import Caller, Capacity, Check, Manifest, ObservedJob, Stacks, Traits
from controlplane.clusters.kubernetes.cluster import KubernetesCluster
from controlplane.domain.logs import LogExtent


class Namespaces:
    """`controlplane.clusters.base.Cluster` over `first`, the namespace of runs that name none, and `others`."""

    def __init__(self, first: KubernetesCluster, others: Mapping[str, KubernetesCluster]) -> None:
        self._first, self._others = first, dict(others)

    @property
    def name(self) -> str:
        """The cluster's name, as runs show it."""
        return self._first.name

    def traits(self) -> Traits:
        """See `Cluster.traits`."""
        return self._first.traits()

    def create(self, manifest: Manifest, secret: Mapping[str, str] | None = None) -> str:
        """See `Cluster.create`."""
        return self._of(manifest).create(manifest, secret)

    def dry_run(self, manifest: Manifest) -> None:
        """See `Cluster.dry_run`."""
        self._of(manifest).dry_run(manifest)

    def observe(self) -> list[ObservedJob]:
        """See `Cluster.observe`."""
        return [job for each in self._all() for job in each.observe()]

    def delete(self, name: str, uid: str | None = None) -> None:
        """See `Cluster.delete`. One that no watch shows is looked for in every namespace."""
        for each in [one for one in self._all() if one.shows(name)] or self._all():
            each.delete(name, uid)

    def logs(self, name: str, pod: str, offset: int = 0, limit: int = 1 << 20) -> bytes:
        """See `Cluster.logs`; all of them keep logs on one shelf."""
        return self._first.logs(name, pod, offset, limit)

    def log_extent(self, name: str, pod: str) -> LogExtent:
        """See `Cluster.log_extent`."""
        return self._first.log_extent(name, pod)

    def stacks(self, name: str) -> Stacks:
        """See `Cluster.stacks`."""
        return self._first.stacks(name)

    def forget(self, name: str) -> None:
        """See `Cluster.forget`."""
        if not any(each.shows(name) for each in self._all()):
            for each in self._all():
                each.forget(name)

    def capacity(self) -> Capacity:
        """See `Cluster.capacity`."""
        return self._first.capacity()

    def access_modes(self, claim: str, namespace: str) -> frozenset[str] | None:
        """See `Cluster.access_modes`."""
        return self._first.access_modes(claim, namespace)

    def authenticate(self, token: str) -> Caller | None:
        """See `Cluster.authenticate`."""
        return self._first.authenticate(token)

    def admit(self, token: str, verb: str) -> str | None:
        """See `Cluster.admit`."""
        return self._first.admit(token, verb)

    def checks(self, claim: str = "") -> list[Check]:
        """See `Cluster.checks`: the first namespace's, and what is otherwise in another."""
        found = self._first.checks(claim)
        return [*found, *self._differing(found, claim)]

    def watch(self, wake: Callable[[], None]) -> None:
        """See `Cluster.watch`."""
        for each in self._all():
            each.watch(wake)

    def close(self) -> None:
        """See `Cluster.close`."""
        for each in self._all():
            each.close()

    def _all(self) -> list[KubernetesCluster]:
        return [self._first, *self._others.values()]

    def _of(self, manifest: Manifest) -> KubernetesCluster:
        """Where it goes; the first refuses what is nobody's."""
        return self._others.get(manifest["metadata"].get("namespace", ""), self._first)

    def _differing(self, known: list[Check], claim: str) -> Iterator[Check]:
        for namespace, each in self._others.items():
            for check in each.checks(claim):
                if check not in known:
                    yield dataclasses.replace(check, name=f"{namespace}: {check.name}")
