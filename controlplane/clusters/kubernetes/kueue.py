"""What Kueue says of objects that it holds back: its Workloads, read, never written.

Kueue suspends the objects of its queues and lets them go when their quota is there. Everything of it is optional: where
it is not installed, or its Workloads may not be read, objects that are suspended say so and no more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from controlplane.clusters.kubernetes.connection import Connection, Refused
from controlplane.clusters.kubernetes.discovery import may
from controlplane.clusters.kubernetes.informer import Informer
from controlplane.clusters.kubernetes.records import when
from controlplane.clusters.kubernetes.resources import Resource

GROUP = "kueue.x-k8s.io"
QUOTA, ADMITTED, EVICTED, FINISHED = "QuotaReserved", "Admitted", "Evicted", "Finished"
STUCK = frozenset({"Inadmissible", "Misconfigured", "Suspended", "OnHold"})  # no such queue, or one that is held
EPOCH = when("1970-01-01T00:00:00+00:00")
LONGEST = 1000


class Workload(NamedTuple):
    """One Workload: whose it is (`owners`, uids), where it stands, and why it waits."""

    owners: tuple[str, ...]
    queue: str
    priority: int
    created: datetime | None
    waits: bool
    message: str


def read_workload(raw: Mapping[str, Any]) -> Workload:
    """A Workload as it is kept."""
    metadata, spec = raw["metadata"], raw.get("spec") or {}
    conditions = {one["type"]: one for one in (raw.get("status") or {}).get("conditions") or ()}
    true = {name for name, one in conditions.items() if one.get("status") == "True"}
    quota, evicted = conditions.get(QUOTA, {}), conditions.get(EVICTED, {})
    told = (evicted, quota) if {QUOTA, EVICTED} <= true else (quota, evicted)  # it keeps its quota while its pods end
    in_line = not ({QUOTA, ADMITTED, FINISHED} & true) and quota.get("reason") not in STUCK
    return Workload(
        owners=tuple(owner["uid"] for owner in metadata.get("ownerReferences") or ()),
        queue=spec.get("queueName", ""),
        priority=int(spec.get("priority") or 0),
        created=when(metadata.get("creationTimestamp")),
        waits=in_line and spec.get("active", True),
        message=next((one["message"] for one in told if one.get("message")), "")[:LONGEST],
    )


def workloads(connection: Connection) -> Resource | None:
    """Where Workloads are, if Kueue is there and we may read them. Raises Trouble and Refused."""
    try:
        group = connection.call("GET", f"/apis/{GROUP}")
    except Refused as error:
        if error.status == 404:
            return None
        raise
    found = Resource(GROUP, group["preferredVersion"]["version"], "workloads", "Workload")
    return found if may(connection, "list", found) and may(connection, "watch", found) else None


class Queues:
    """The namespace's Workloads, once `follow` was told where they are."""

    def __init__(self, connection: Connection, changed: Callable[[], None]) -> None:
        self._connection, self._changed = connection, changed
        self._informer: Informer[Workload] | None = None
        self._lock = threading.Lock()

    @property
    def there(self) -> bool:
        """Whether there is a Kueue."""
        return self._informer is not None

    def follow(self, resource: Resource | None) -> None:
        """Watch them there; None: there are none any more."""
        path = resource.path(self._connection.namespace) if resource else None
        with self._lock:
            if self._informer is not None and self._informer.path != path:
                self._informer.stop()
                self._informer = None
                self._changed()
            if path is not None and self._informer is None:
                self._informer = Informer(self._connection, path, read_workload, lambda _: self._changed())
                self._informer.start()

    def close(self) -> None:
        """Stop watching."""
        self.follow(None)

    def says(self, uid: str) -> str:
        """Why the object of this uid is not admitted, with its place in the queue; empty where nothing is known."""
        informer = self._informer
        if informer is None:
            return ""
        known = informer.values()
        own = next((one for one in known if uid in one.owners), None)
        if own is None:
            return ""
        line = sorted((one for one in known if one.waits and one.queue == own.queue), key=_order)
        place = (
            f"place {line.index(own) + 1} of {len(line)} in queue {own.queue}" if own in line else f"queue {own.queue}"
        )
        return f"{place}: {own.message or 'Kueue has not looked at it yet'}"


def _order(one: Workload) -> tuple[int, datetime | None]:
    """As Kueue orders a queue: by priority, then by age."""
    return -one.priority, one.created or EPOCH
