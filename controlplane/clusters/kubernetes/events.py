"""The namespace's events that say why something waits, by the name of what they are about."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from controlplane.clusters.kubernetes.connection import Connection
from controlplane.clusters.kubernetes.informer import Informer
from controlplane.clusters.kubernetes.records import when
from controlplane.clusters.kubernetes.resources import EVENTS

NOISE = (
    "Scheduled",
    "Pulled",
    "Created",
    "Started",
    "SuccessfulCreate",
    "SuccessfulCreatePod",
    "SuccessfulCreateService",
)
KEPT = frozenset(
    {"FailedCreate", "FailedCreatePod", "FailedCreatePodSandBox", "FailedMount", "FailedAttachVolume", "Pulling"}
)
OURS = frozenset({"PyTorchJob", "TrainJob", "JobSet", "Job", "Pod"})
LONGEST = 1000


class EventRecord(NamedTuple):
    """What happened to `about`, the last time."""

    about: str
    reason: str
    message: str
    last: datetime | None


def read_event(raw: Mapping[str, Any]) -> EventRecord | None:
    """An event that explains something; None for any other."""
    about, reason = raw.get("involvedObject") or {}, raw.get("reason", "")
    if reason not in KEPT or about.get("kind") not in OURS:
        return None
    series = raw.get("series") or {}
    last = series.get("lastObservedTime") or raw.get("lastTimestamp") or raw.get("eventTime")
    last = last or raw["metadata"].get("creationTimestamp")
    return EventRecord(about.get("name", ""), reason, (raw.get("message") or "")[:LONGEST], when(last))


class Events:
    """Kept up to date by an informer. Where events may not be read, there are none: they decide nothing."""

    def __init__(self, connection: Connection, namespace: str, changed: Callable[[set[str]], None]) -> None:
        self._changed = changed
        self._by_name: dict[str, dict[str, EventRecord]] = {}
        self._about: dict[str, str] = {}
        self._lock = threading.Lock()
        noise = ",".join(f"reason!={reason}" for reason in NOISE)
        path = EVENTS.path(namespace)
        self.informer = Informer(connection, path, read_event, self._take, selectors={"fieldSelector": noise})

    def of(self, *names: str) -> list[EventRecord]:
        """What happened to any of these, the latest first."""
        with self._lock:
            found = [event for name in names for event in self._by_name.get(name, {}).values()]
        return sorted(found, key=lambda event: event.last.timestamp() if event.last else 0.0, reverse=True)

    def _take(self, names: set[str]) -> None:
        touched: set[str] = set()
        with self._lock:
            for name in names:
                event = self.informer.get(name)
                if (about := self._about.pop(name, None)) is not None:
                    touched.add(about)
                    self._by_name[about].pop(name, None)
                    if not self._by_name[about]:
                        del self._by_name[about]
                if event is not None:
                    touched.add(event.about)
                    self._about[name] = event.about
                    self._by_name.setdefault(event.about, {})[name] = event
        self._changed(touched)
