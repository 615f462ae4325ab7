"""What the control plane sees: each object with every pod it should have, made of the informers' records.

The view of a pod is made anew when there is news of it, of its object, or of what it waits for: the nodes, a queue, a
moment that has come. All others are kept: thousands of objects that wait cost a look nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple

from controlplane.clusters.base import ObservedJob, ObservedPod, PodPhase
from controlplane.clusters.kubernetes import waiting
from controlplane.clusters.kubernetes.endings import OVERDUE, Ending, ending_of
from controlplane.clusters.kubernetes.events import EventRecord
from controlplane.clusters.kubernetes.nodes import Room
from controlplane.clusters.kubernetes.records import NODE_SUFFIX, Key, ObjectRecord, PodRecord, pod_name, role_of
from controlplane.clusters.kubernetes.waiting import TAKEN_UP, Wait
from controlplane.clusters.pods import Pods, RunningPod

PUT_OUT = frozenset({None, 137, 143})  # exit codes of pods that somebody stopped
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
        self._pods: dict[str, PodRecord] = {}
        self._of: dict[Key, list[PodRecord]] = {}
        self._views: dict[str, ObservedJob] = {}
        self._dirty: dict[str, set[str] | None] = {}  # objects to view, and which pods of them; None: all
        self._later: dict[str, datetime] = {}  # objects that look otherwise after this moment, without any news
        self._queued: set[str] = set()  # objects that are suspended: what Kueue says of the others concerns them
        self._unplaced: set[str] = set()  # objects with a pod that no node takes
        self._room: Room | None = None  # that their views tell of
        self._names: dict[Key, str] = {}  # of objects
        self._foreign: dict[str, Key] = {}  # objects of other installations
        self._lock = threading.RLock()

    def take_object(self, name: str, record: ObjectRecord | None) -> None:
        """An object is new, has changed, or is gone. Another installation's is none of ours."""
        with self._lock:
            if record is None or record.instance not in ("", self._instance):
                gone = self._objects.pop(name, None)
                self._views.pop(name, None)
                self._dirty.pop(name, None)
                self._note(name)
                if gone is not None and self._names.get(gone.key) == name:
                    del self._names[gone.key]
                self._foreign.pop(name, None)
                if record is not None:
                    self._foreign[name] = record.key
            else:
                self._objects[name] = record
                self._names[record.key] = name
                self._dirty[name] = None

    def take_pod(self, name: str, record: PodRecord | None) -> PodRecord | None:
        """A pod is new, has changed, or is gone; what was known of it before."""
        with self._lock:
            if (before := self._pods.pop(name, None)) is not None:
                others = self._of[before.key]
                del others[next(at for at, one in enumerate(others) if one is before)]  # to compare them takes long
                self._touch(before.key, name)
                if not others:
                    del self._of[before.key]
            if record is not None:
                self._pods[name] = record
                self._of.setdefault(record.key, []).append(record)
                self._touch(record.key, name)
        return before

    def take_event(self, about: str) -> None:
        """There is news about an object or a pod."""
        with self._lock:
            if (name := about.removesuffix(NODE_SUFFIX)) in self._objects:  # a TrainJob's Job is called after it
                self._dirty[name] = None
            elif (pod := self._pods.get(about)) is not None:
                self._touch(pod.key, about)

    def take_queues(self) -> None:
        """There is news about what Kueue holds back."""
        with self._lock:
            self._dirty.update(dict.fromkeys(self._queued))

    def observe(self) -> list[ObservedJob]:
        """Every object of ours as it is now, and each that is gone while pods of it are left: those may still work."""
        now, room = self._now(), self._sources.room()
        with self._lock:
            if room is not self._room:
                self._room = room
                self._dirty.update(dict.fromkeys(self._unplaced))
            self._dirty.update((name, None) for name, at in self._later.items() if now > at)
            for name, news in list(self._dirty.items()):
                self._views[name], after = self._view(self._objects[name], now, self._views.get(name), news)
                self._note(name, after)
                del self._dirty[name]
            return [*self._views.values(), *self._orphans(now)]

    def pods_of(self, name: str) -> list[PodRecord]:
        """The pods that an object of ours has."""
        with self._lock:
            record = self._objects.get(name)
            return list(self._of.get(record.key, ())) if record else []

    def left_by(self, name: str) -> list[PodRecord]:
        """The pods that an object of this name left to nobody when it went."""
        with self._lock:
            every = [pod for key in self._ownerless() for pod in self._of[key] if _left(pod)]
            return [pod for pod in every if pod.owner is not None and pod.owner.name == name]

    def owner_of(self, pod: PodRecord) -> ObjectRecord | None:
        """The object of ours that a pod belongs to."""
        with self._lock:
            name = self._names.get(pod.key)
            return self._objects.get(name) if name else None

    def object(self, name: str) -> ObjectRecord | None:
        """An object of ours."""
        return self._objects.get(name)

    def lacks_room(self) -> bool:
        """Whether a pod has found no node, as of the last look."""
        return bool(self._unplaced)

    def _orphans(self, now: datetime) -> Iterator[ObservedJob]:
        """Whoever deletes an object may leave its pods to the garbage collector, which gives them their grace period.

        Or to nobody (`--cascade=orphan`). Until they have ended, their attempt is not over: the next one would work
        beside them.
        """
        for key in self._ownerless():
            first = min(self._of[key], key=lambda pod: (pod.created, pod.uid))
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
                    nodes=len(self._of[key]),
                    suspended=False,
                    queue="",
                    started=True,
                    succeeded=False,
                    failed=None,
                )
                seen = self._view(gone, now, None, None)[0]
                yield replace(seen, gone=True, deleting=not any(_left(pod) for pod in self._of[key]))

    def _ownerless(self) -> set[Key]:
        """Whose pods are there, and no object."""
        return self._of.keys() - self._names.keys() - set(self._foreign.values())

    def _touch(self, key: Key, pod: str) -> None:
        if (name := self._names.get(key)) is not None and (news := self._dirty.setdefault(name, set())) is not None:
            news.add(pod)

    def _note(self, name: str, at: datetime | None = None) -> None:
        """What an object's view depends on beside news of it and of its pods; `at`: it looks otherwise after that."""
        job = self._objects.get(name)
        pods = self._of.get(job.key, ()) if job is not None else ()
        for names, depends in (
            (self._queued, job is not None and job.suspended),
            (self._unplaced, any(pod.unscheduled for pod in pods)),
        ):
            names.add(name) if depends else names.discard(name)
        self._later.pop(name, None)
        if at is not None:
            self._later[name] = at

    def _view(
        self, job: ObjectRecord, now: datetime, before: ObservedJob | None, news: set[str] | None
    ) -> tuple[ObservedJob, datetime | None]:
        """The object as the protocol shows it, and until when it looks like that if there is no news.

        What it looked like `before` is kept of pods that are there and not in `news`; None: of none.
        """
        if before is not None and news is not None and (seen := self._in_place(job, before, news)) is not None:
            return seen, None
        pods = by_index(self._of.get(job.key, ()))
        known = before.pods.kept if before is not None and isinstance(before.pods, Pods) else ()
        master = ending_of(pods[0], now) if 0 in pods else None
        master_done = job.succeeded or (master is not None and master.phase == "Succeeded")
        if master_done and before is not None and before.pods and before.pods[0].phase != "Succeeded":
            news = None  # that changes what the others' ends mean
        views: list[ObservedPod | RunningPod] = []
        several = max(job.nodes, max(pods, default=-1) + 1)
        absent = self._absent(job, len(pods), now, master_done=master_done) if len(pods) < several else None
        for index in range(several):
            pod, view = pods.get(index), known[index] if index < len(known) else None
            if pod is None:
                assert absent is not None
                view = absent(index)
            elif view is None or news is None or view.name in news or view.uid != pod.uid:
                ending = ending_of(pod, now)
                runs = ending is None and _runs(pod)
                view = pod if runs else self._present(job, pod, ending, master_done=master_done)
            views.append(view)
        seen = ObservedJob(
            name=job.name,
            uid=job.uid,
            run_id=job.key.run_id,
            attempt=job.key.attempt,
            spec_hash=job.spec_hash,
            created_at=job.created,
            deleting=job.deleting,
            pods=Pods(tuple(views)),
        )
        moments = [pod.deleted + OVERDUE for pod in pods.values() if pod.deleted is not None]
        if absent is not None:
            moments += [
                job.created + TAKEN_UP,
                *([job.failed.since + SETTLED] if job.failed and job.failed.since else []),
            ]
        return seen, min((at for at in moments if at >= now), default=None)

    def _in_place(self, job: ObjectRecord, before: ObservedJob, news: set[str]) -> ObservedJob | None:
        """The object with these pods seen anew; None where more than that may look otherwise.

        Before and now each of its pods is there once, and none of them has ended or is about to.
        """
        there = len(self._of.get(job.key, ()))
        if not (isinstance(before.pods, Pods) and there == len(before.pods) == job.nodes) or job.name in self._later:
            return None
        if job.succeeded or any(pod.phase != "Pending" or not pod.uid for pod in before.pods.not_running):
            return None
        views, now = list(before.pods.kept), self._now()
        for name in news:
            pod = self._pods.get(name)
            if pod is None or pod.deleted or pod.index >= len(views) or ending_of(pod, now) is not None:
                return None
            if (views[pod.index].name, views[pod.index].uid) != (name, pod.uid):
                return None
            views[pod.index] = pod if _runs(pod) else self._present(job, pod, None, master_done=False)
        return replace(before, pods=Pods(tuple(views)))

    def _absent(
        self, job: ObjectRecord, there: int, now: datetime, *, master_done: bool
    ) -> Callable[[int], ObservedPod]:
        """What pods of an object are like that do not exist, by index: they are still to come, or have been."""
        phase: PodPhase
        phase, why = self._why_absent(job, there, now)

        def view(index: int) -> ObservedPod:
            name, (role, number) = pod_name(job.kind, job.name, index), role_of(index)
            removed = job.kind == "PyTorchJob" and master_done and index > 0  # by the operator: cleanPodPolicy Running
            if job.succeeded or removed:
                return ObservedPod(name, "", role, number, "Succeeded", exit_code=0)
            return ObservedPod(name, "", role, number, phase, why.reason, why.message)

        return view

    def _why_absent(self, job: ObjectRecord, there: int, now: datetime) -> tuple[PodPhase, Wait]:
        if job.failed is not None and (job.failed.since is None or now - job.failed.since > SETTLED):
            return "Failed", Wait(job.failed.reason or "Failed", job.failed.message)
        if job.deleting:
            return "Failed", Wait("Deleted", "it was removed with its object")
        events = self._sources.events(job.name, f"{job.name}{NODE_SUFFIX}")
        admission = self._sources.admission(job.uid) if job.suspended else ""
        return "Pending", waiting.uncreated(job, there, events, admission, now)

    def _present(self, job: ObjectRecord, pod: PodRecord, ending: Ending | None, *, master_done: bool) -> ObservedPod:
        """A pod that is there and does not just run."""
        if ending is not None:
            removed = job.kind == "PyTorchJob" and master_done and pod.index > 0 and pod.deleted is not None
            if removed and ending.phase == "Failed":
                ending = replace(ending, phase="Succeeded", reason=None, message=None, exit_code=0, signal=None)
            elif job.suspended and job.queue and put_out(ending):
                told = self._sources.admission(job.uid) or f"queue {job.queue}"
                ending = replace(ending, reason="Preempted", message=f"Kueue suspended it ({told})")
            return _seen(pod)(**vars(ending))
        wait = waiting.placing(pod, self._sources.events(pod.name), self._room)
        return _seen(pod)("Pending", wait.reason, wait.message)


def put_out(ending: Ending) -> bool:
    """Whether a pod ended as those do that somebody stopped, which its memory's limit does with the same signal."""
    return ending.phase == "Failed" and ending.exit_code in PUT_OUT and ending.reason != "OOMKilled"


def _left(pod: PodRecord) -> bool:
    """Whether no one will end the pod when its object is gone."""
    return pod.deleted is None and (pod.owner is None or not pod.owner.uid)


def _runs(pod: PodRecord) -> bool:
    return pod.main is not None and pod.main.what == "running"


def _seen(pod: PodRecord) -> Callable[..., ObservedPod]:
    role, number = role_of(pod.index)
    return partial(ObservedPod, pod.name, pod.uid, role, number, node=pod.node or None)


def by_index(pods: Iterable[PodRecord]) -> Mapping[int, PodRecord]:
    """One pod for each node: the oldest, since whatever replaces a pod ends the attempt."""
    chosen: dict[int, PodRecord] = {}
    for pod in pods:
        other = chosen.get(pod.index)
        if other is None or (pod.created, pod.uid) < (other.created, other.uid):
            chosen[pod.index] = pod
    return chosen
