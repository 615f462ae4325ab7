"""What the control plane sees: each object with every pod it should have, made of the informers' records.

An object's view is made anew when one of its records changed, and at every look while something in it depends on the
time; the rest is kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple

from controlplane.clusters.base import ObservedJob, ObservedPod
from controlplane.clusters.kubernetes import waiting
from controlplane.clusters.kubernetes.endings import Ending, ending_of
from controlplane.clusters.kubernetes.events import EventRecord
from controlplane.clusters.kubernetes.nodes import Room
from controlplane.clusters.kubernetes.records import Key, ObjectRecord, PodRecord, pod_name, role_of

SETTLED = timedelta(seconds=5)  # pods of an object that failed may be seen later than its failure


class Sources(NamedTuple):
    """Where explanations come from: events by name, the nodes as last seen, what Kueue says of an object's uid."""

    events: Callable[..., list[EventRecord]]
    room: Callable[[], Room | None]
    admission: Callable[[str], str]


class Observer:
    """Views of objects, from records that informers report as changed. `now`: by the clock that stamps the records."""

    def __init__(self, sources: Sources, instance: str, now: Callable[[], datetime]) -> None:
        self._sources, self._instance, self._now = sources, instance, now
        self._objects: dict[str, ObjectRecord] = {}
        self._pods: dict[Key, dict[str, PodRecord]] = {}
        self._keys: dict[str, Key] = {}  # of pods
        self._views: dict[str, ObservedJob] = {}
        self._dirty: set[str] = set()
        self._names: dict[Key, str] = {}  # of objects
        self._foreign: dict[str, Key] = {}  # objects of other installations
        self._lock = threading.RLock()

    def take_object(self, name: str, record: ObjectRecord | None) -> None:
        """An object is new, has changed, or is gone. Another installation's is none of ours."""
        with self._lock:
            if record is None or record.instance not in ("", self._instance):
                gone = self._objects.pop(name, None)
                self._views.pop(name, None)
                self._dirty.discard(name)
                if gone is not None and self._names.get(gone.key) == name:
                    del self._names[gone.key]
                self._foreign.pop(name, None)
                if record is not None:
                    self._foreign[name] = record.key
            else:
                self._objects[name] = record
                self._names[record.key] = name
                self._dirty.add(name)

    def take_pod(self, name: str, record: PodRecord | None) -> PodRecord | None:
        """A pod is new, has changed, or is gone; what was known of it before."""
        before: PodRecord | None = None
        with self._lock:
            if (key := self._keys.pop(name, None)) is not None:
                before = self._pods[key].pop(name, None)
                self._touch(key)
                if not self._pods[key]:
                    del self._pods[key]
            if record is not None:
                self._keys[name] = record.key
                self._pods.setdefault(record.key, {})[name] = record
                self._touch(record.key)
        return before

    def take_event(self, about: str) -> None:
        """There is news about an object or a pod."""
        with self._lock:
            if about in self._objects:
                self._dirty.add(about)
            elif key := self._keys.get(about):
                self._touch(key)

    def observe(self) -> list[ObservedJob]:
        """Every object of ours as it is now, and each that is gone while pods of it are left: those may still work."""
        now = self._now()
        with self._lock:
            for name in list(self._dirty):
                job, settled = self._view(self._objects[name], now)
                self._views[name] = job
                if settled:
                    self._dirty.discard(name)
            return [*self._views.values(), *self._orphans(now)]

    def pods_of(self, name: str) -> list[PodRecord]:
        """The pods that an object of ours has."""
        with self._lock:
            record = self._objects.get(name)
            return list(self._pods.get(record.key, {}).values()) if record else []

    def owner_of(self, pod: PodRecord) -> ObjectRecord | None:
        """The object of ours that a pod belongs to."""
        with self._lock:
            name = self._names.get(pod.key)
            return self._objects.get(name) if name else None

    def object(self, name: str) -> ObjectRecord | None:
        """An object of ours."""
        return self._objects.get(name)

    def lacks_room(self) -> bool:
        """Whether a pod has found no node."""
        with self._lock:
            return any(pod.unscheduled for name in self._dirty for pod in self.pods_of(name))

    def _orphans(self, now: datetime) -> Iterator[ObservedJob]:
        """Whoever deletes an object may leave its pods to the garbage collector, which gives them their grace period.

        Until they have ended, their attempt is not over: the next one would work beside them.
        """
        known = self._names.keys() | set(self._foreign.values())
        for key in self._pods.keys() - known:
            first = min(self._pods[key].values(), key=lambda pod: (pod.created, pod.uid))
            if first.owner is not None:
                gone = ObjectRecord(
                    kind=first.owner.kind,
                    name=first.owner.name,
                    uid=first.owner.uid,
                    key=key,
                    spec_hash="",
                    instance=self._instance,
                    created=first.created,
                    deleting=True,
                    nodes=len(self._pods[key]),
                    suspended=False,
                    queue="",
                    started=True,
                    succeeded=False,
                    failed=None,
                )
                yield self._view(gone, now)[0]

    def _touch(self, key: Key) -> None:
        if (name := self._names.get(key)) is not None:
            self._dirty.add(name)

    def _view(self, job: ObjectRecord, now: datetime) -> tuple[ObservedJob, bool]:
        """The object as the protocol shows it, and whether only news can change that."""
        pods = by_index(self._pods.get(job.key, {}).values())
        endings = {index: ending_of(pod, now) for index, pod in pods.items()}
        first = endings.get(0)
        master_done = job.succeeded or (first is not None and first.phase == "Succeeded")
        views: list[ObservedPod] = []
        settled = True
        for index in range(max(job.nodes, max(pods, default=-1) + 1)):
            pod = pods.get(index)
            if pod is None:
                view = self._absent(job, index, len(pods), now, master_done=master_done)
            else:
                view = self._present(job, pod, endings[index], master_done=master_done)
            settled = settled and view.phase != "Pending" and not (view.phase == "Running" and pod and pod.deleted)
            views.append(view)
        seen = ObservedJob(
            name=job.name,
            uid=job.uid,
            run_id=job.key.run_id,
            attempt=job.key.attempt,
            spec_hash=job.spec_hash,
            created_at=job.created,
            deleting=job.deleting,
            pods=tuple(views),
        )
        return seen, settled

    def _absent(self, job: ObjectRecord, index: int, there: int, now: datetime, *, master_done: bool) -> ObservedPod:
        """A pod that does not exist: it is still to come, or it has been."""
        name, (role, number) = pod_name(job.kind, job.name, index), role_of(index)
        removed = job.kind == "PyTorchJob" and master_done and index > 0  # by the operator: cleanPodPolicy Running
        if job.succeeded or removed:
            return ObservedPod(name, "", role, number, "Succeeded", exit_code=0)
        if job.failed is not None and (job.failed.since is None or now - job.failed.since > SETTLED):
            return ObservedPod(name, "", role, number, "Failed", job.failed.reason or "Failed", job.failed.message)
        if job.deleting:
            return ObservedPod(name, "", role, number, "Failed", "Deleted", "it was removed with its object")
        events = self._sources.events(job.name, f"{job.name}-node-0")
        wait = waiting.uncreated(job, there, events, self._sources.admission(job.uid), now)
        return ObservedPod(name, "", role, number, "Pending", wait.reason, wait.message)

    def _present(self, job: ObjectRecord, pod: PodRecord, ending: Ending | None, *, master_done: bool) -> ObservedPod:
        role, number = role_of(pod.index)
        seen = partial(ObservedPod, pod.name, pod.uid, role, number, node=pod.node or None)
        if ending is not None:
            removed = job.kind == "PyTorchJob" and master_done and pod.index > 0 and pod.deleted is not None
            if removed and ending.phase == "Failed":
                ending = replace(ending, phase="Succeeded", reason=None, message=None, exit_code=0, signal=None)
            return seen(**vars(ending))
        if pod.main is not None and pod.main.what == "running":
            return seen("Running", started_at=pod.main.started)
        wait = waiting.placing(pod, self._sources.events(pod.name), self._sources.room())
        return seen("Pending", wait.reason, wait.message)


def by_index(pods: Iterable[PodRecord]) -> Mapping[int, PodRecord]:
    """One pod for each node: the oldest, since whatever replaces a pod ends the attempt."""
    chosen: dict[int, PodRecord] = {}
    for pod in pods:
        other = chosen.get(pod.index)
        if other is None or (pod.created, pod.uid) < (other.created, other.uid):
            chosen[pod.index] = pod
    return chosen
