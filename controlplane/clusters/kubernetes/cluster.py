"""A Kubernetes cluster as the control plane knows it: objects, their pods, their logs.

It only puts the parts together. What stands in the cluster is the truth; what is kept on disk is the archive of logs,
and beside it which objects were made.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from controlplane.clusters.base import (
    Caller,
    Capacity,
    Check,
    Kind,
    Manifest,
    ObservedJob,
    Refusal,
    Rejected,
    Stacks,
    Traits,
    Unavailable,
)
from controlplane.clusters.kubernetes import checks, discovery
from controlplane.clusters.kubernetes.archive import SUFFIX, longer_name
from controlplane.clusters.kubernetes.connection import Connection, Refused, Trouble
from controlplane.clusters.kubernetes.events import Events
from controlplane.clusters.kubernetes.identity import Callers, Users
from controlplane.clusters.kubernetes.informer import Informer
from controlplane.clusters.kubernetes.kueue import Queues, workloads
from controlplane.clusters.kubernetes.logs import Collector, with_cuts
from controlplane.clusters.kubernetes.nodes import BLIND, Nodes
from controlplane.clusters.kubernetes.observer import Observer, Sources
from controlplane.clusters.kubernetes.records import ObjectRecord, PodRecord, read_object, read_pod, unlabelled
from controlplane.clusters.kubernetes.remembered import Remembered
from controlplane.clusters.kubernetes.resources import ATTEMPTS, CLAIMS, PODS
from controlplane.clusters.kubernetes.submission import Submission
from controlplane.clusters.shelf import Shelf
from controlplane.domain.logs import LogExtent
from controlplane.render.models import MANAGED_BY

log = logging.getLogger(__name__)
NAME = re.compile(r"[a-z0-9][-a-z0-9.]*")
OURS = {"labelSelector": f"{MANAGED_BY}=teragpt"}
LOOK_AGAIN_S = 180.0  # at which kinds there are
LOOK_SOON_S = 10.0  # while nothing is known
VANISHED_S = 600.0  # a kind that has not been served for so long is gone, and its objects with it
KEEP_S = 1.0
CLAIM_S = 4.0  # that a claim is looked for where the server does not answer; it asks for pauses of a second or two
NODES_S = 60.0  # while something waits for room
LOGS_S = 0.5  # how long a deletion waits for logs to be read, before it is put off
LOGS_AT_MOST_S = 30.0


class KubernetesCluster:
    """`controlplane.clusters.base.Cluster` on a Kubernetes API server.

    `kubeconfig` None: the pod's own account, else $KUBECONFIG or ~/.kube/config; `context` None: its current one;
    `namespace` None: the one that goes with it. Logs are kept on the shelf `archive`. `audience` is that of the pods'
    tokens, `kind` "auto" or the kind of object to prefer, `instance` the installation whose objects these are: others'
    in the namespace are left alone. `others` are further namespaces whose pods are ours too, though they are looked
    after elsewhere; `quotas` are the GPUs of namespaces, for as long as there is no Kueue. Raises Unavailable where
    there is no usable configuration; a server that does not answer is waited for.
    """

    def __init__(
        self,
        *,
        name: str,
        kubeconfig: Path | None,
        context: str | None = None,
        namespace: str | None,
        archive: Shelf,
        audience: str = "teragpt",
        kind: str = "auto",
        instance: str,
        others: tuple[str, ...] = (),
        quotas: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._quotas = quotas
        self._name, self._archive, self._audience, self._kind = name, archive, audience, kind
        self._connection = Connection(kubeconfig, namespace, context)
        self._namespace, self._others = self._connection.namespace, others
        self._submission = Submission(self._connection, archive, instance)
        self._callers = Callers(self._connection, audience, (self._namespace, *others))
        self._users = Users(self._connection, audience, (self._namespace, *others))
        self._collector = Collector(self._connection, archive)
        self._nodes = Nodes(self._connection)
        self._events = Events(self._connection, self._namespace, self._take_events)
        self._queues = Queues(self._connection, self._take_queues)
        sources = Sources(self._events.of, self._nodes.last, self._queues.says)
        self._observer = Observer(sources, instance, self._connection.now)
        self._wakers: list[Callable[[], None]] = []
        self._kinds = discovery.assumed(kind)
        self._remembered = Remembered(archive, self._namespace)
        self._pods = Informer(self._connection, PODS.path(self._namespace), read_pod, self._take_pods, selectors=OURS)
        self._objects: dict[Kind, Informer[ObjectRecord]] = {}
        self._absent_since: dict[Kind, float] = {}
        self._ended_since: dict[str, float] = {}
        self._watching = False
        self._look_now = threading.Event()
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="kubernetes", daemon=True)
        self._keeper.start()

    @property
    def name(self) -> str:
        """The cluster's name, as runs show it."""
        return self._name

    def traits(self) -> Traits:
        """See `Cluster.traits`."""
        return Traits(
            namespace=self._namespace,
            others=self._others,
            kinds=self._kinds.usable,
            reasons=self._kinds.reasons,
            shared_folders=False,
            audience=self._audience,
            gang=False,
            queues=self._queues.there,
            quotas={} if self._queues.there else self._quotas,
        )

    def create(self, manifest: Manifest, secret: Mapping[str, str] | None = None) -> str:
        """See `Cluster.create`; there are no secrets here: pods prove who they are by a projected token."""
        if secret:
            raise Rejected([Refusal("secret", sorted(secret), "none on Kubernetes: pods have projected tokens")])
        self._ensure_ours(manifest)
        uid, raw = self._submission.create(manifest)
        if raw is None or (kind := discovery.preferred(raw["kind"])) is None:
            return uid
        if (informer := self._objects.get(kind)) is not None:
            informer.note(raw)
            self._remembered.add(kind)
        return uid

    def dry_run(self, manifest: Manifest) -> None:
        """See `Cluster.dry_run`."""
        self._ensure_ours(manifest)
        self._submission.dry_run(manifest)

    def observe(self) -> list[ObservedJob]:
        """See `Cluster.observe`. Raises Unavailable where what is known may not be what is there."""
        self._check()
        jobs, cuts = self._observer.observe(), self._collector.cuts()
        return [with_cuts(job, cuts[job.name]) if job.name in cuts else job for job in jobs]

    def shows(self, name: str) -> bool:
        """Whether there is an object of this name, as far as the watch has told."""
        return self._observer.object(name) is not None

    def delete(self, name: str, uid: str | None = None) -> None:
        """See `Cluster.delete`. What its ended pods wrote is read first: until then it is Unavailable, for a while."""
        self._check()
        found = self._observer.object(name) or self._look_up(name, uid)
        if found is None:
            self._end_left(name)
            return
        if found.deleting or (uid is not None and found.uid != uid):
            return
        self._settle_logs(name, self._observer.pods_of(name))
        self._submission.delete(found.kind, name, found.uid)

    def logs(self, name: str, pod: str, offset: int = 0, limit: int = 1 << 20) -> bytes:
        """See `Cluster.logs`. A pod of a Job may be named without the five letters that Kubernetes added."""
        if not (NAME.fullmatch(name) and NAME.fullmatch(pod)):
            return b""
        self._attend(name, pod)
        offset, limit, file = max(0, offset), max(0, limit), f"{name}/{pod}.log"
        if data := self._archive.read(file, offset, limit):
            return data
        other = longer_name(self._archive, name, pod)
        return self._archive.read(other, offset, limit) if other else b""

    def log_extent(self, name: str, pod: str) -> LogExtent:
        """See `Cluster.log_extent`."""
        if not (NAME.fullmatch(name) and NAME.fullmatch(pod)):
            return LogExtent()
        self._attend(name, pod)
        there = self._archive.extent(f"{name}/{pod}.log")
        other = None if there.end else longer_name(self._archive, name, pod)
        return self._archive.extent(other) if other else there

    def stacks(self, name: str) -> Stacks:
        """See `Cluster.stacks`: pods are looked into by nobody but themselves."""
        del name
        return Stacks(
            problem="pods are not looked into; each rank that does not stop in time prints its own into the log"
        )

    def forget(self, name: str) -> None:
        """See `Cluster.forget`."""
        if not NAME.fullmatch(name):
            return
        lives = self._observer.object(name) is not None
        if not lives:
            self._submission.forget(name)
        self._collector.forget(name, lives=lives)
        if self._observer.object(name) is None:
            self._collector.vanished(name)

    def capacity(self) -> Capacity:
        """See `Cluster.capacity`."""
        room = self._nodes.room()
        return room.capacity() if room is not None else BLIND

    def access_modes(self, claim: str, namespace: str) -> frozenset[str] | None:
        """See `Cluster.access_modes`."""
        try:
            found = self._sought(CLAIMS.path(namespace, claim))
        except Refused as error:
            if error.status == 404:
                return None
            raise Unavailable(f"claim {claim}: {error}") from error
        except Trouble as error:
            raise Unavailable(str(error)) from error
        return frozenset((found.get("spec") or {}).get("accessModes") or ())

    def _sought(self, path: str) -> Mapping[str, Any]:
        """An object, asked for again for a while where no answer comes, or a pause is asked for."""
        until = time.monotonic() + CLAIM_S
        while True:
            try:
                return self._connection.call("GET", path)
            except (Trouble, Refused) as error:
                if time.monotonic() > until or (isinstance(error, Refused) and error.retry_after is None):
                    raise
            time.sleep(CLAIM_S / 8)

    def authenticate(self, token: str) -> Caller | None:
        """See `Cluster.authenticate`."""
        return self._callers.authenticate(token)

    def admit(self, token: str, verb: str) -> str | None:
        """See `Cluster.admit`."""
        return self._users.admit(token, verb)

    def checks(self, claim: str = "") -> list[Check]:
        """See `Cluster.checks`."""
        return checks.look(self._connection, self._kind, claim)

    def watch(self, wake: Callable[[], None]) -> None:
        """See `Cluster.watch`. Without it nothing is watched and no log is kept: another process does that."""
        self._wakers.append(wake)
        if not self._watching:
            self._watching = True
            self._pods.start()
            self._events.informer.start()
            self._look_now.set()

    def close(self) -> None:
        """See `Cluster.close`."""
        self._stopping.set()
        self._keeper.join(5.0)  # first: it may just be about to watch one thing more
        for informer in self._objects.values():
            informer.stop()
        self._events.informer.stop()
        self._queues.close()
        self._pods.stop()
        self._collector.close()
        self._connection.close()

    def _ensure_ours(self, manifest: Manifest) -> None:
        """Raises Unavailable for a run whose namespace was taken out of the installation's: it may come back."""
        asked = manifest["metadata"].get("namespace") or self._namespace
        if asked != self._namespace:
            ours = ", ".join((self._namespace, *self._others))
            raise Unavailable(f"namespace {asked} is none of the installation's ({ours}): add it to TERAGPT_NAMESPACE")

    def _check(self) -> None:
        """Raises Unavailable unless everything is known."""
        informers = dict(self._objects)
        if not informers:
            raise Unavailable(f"{self._connection.host} has not said yet which kinds of object it has")
        for kind in self._remembered.kinds - informers.keys():
            raise Unavailable(
                f"there were objects of kind {kind}, which cannot be seen: {self._kinds.reasons.get(kind)}"
            )
        self._pods.check()
        for informer in informers.values():
            informer.check()

    def _look_up(self, name: str, uid: str | None) -> ObjectRecord | None:
        """An object that the watch does not show: one whose creation was not answered, perhaps. Raises Unavailable.

        The `uid` of one that we made is enough: somebody may have taken its labels away.
        """
        for kind in list(self._objects):
            try:
                raw = self._connection.call("GET", ATTEMPTS[kind].path(self._namespace, name))
            except Refused as error:
                if error.status != 404:
                    raise Unavailable(str(error)) from error
            except Trouble as error:
                raise Unavailable(str(error)) from error
            else:
                return read_object(kind, raw) or (unlabelled(kind, raw) if raw["metadata"]["uid"] == uid else None)
        return None

    def _attend(self, name: str, pod: str) -> None:
        """Somebody looks at this log: it is read again soon, however silent its pod was."""
        for record in self._observer.pods_of(name):
            if pod in (record.name, record.name[:-SUFFIX]):
                self._collector.wanted(record.uid)

    def _end_left(self, name: str) -> None:
        """End what an object left that somebody deleted without its pods. Raises Unavailable."""
        left = self._observer.left_by(name)
        for pod in left:
            self._read_log(name, pod)
        self._settle_logs(name, left)
        for pod in left:
            log.warning("object %s is gone and has left pod %s, which is ended", name, pod.name)
            self._submission.delete_pod(pod.name, pod.uid)

    def _settle_logs(self, name: str, pods: Iterable[PodRecord]) -> None:
        """Raises Unavailable while the log of a pod that has ended is still being read."""
        ended = {pod.uid for pod in pods if pod.main and pod.main.what == "terminated"}
        first = self._ended_since.setdefault(name, time.monotonic())
        if not self._collector.settled(ended, LOGS_S) and time.monotonic() - first < LOGS_AT_MOST_S:
            raise Unavailable(f"{name}: what its pods wrote last is still being read")
        self._ended_since.pop(name, None)

    # --- on the informers' threads and the keeper's -----------------------------------------------------------------

    def _keep(self) -> None:
        """Find out which kinds there are, again and again; look at the nodes while something waits for room."""
        look_at = nodes_at = 0.0
        while not self._stopping.is_set():
            now = time.monotonic()
            if now >= look_at or self._look_now.is_set():
                self._look_now.clear()
                found = discovery.look(self._connection, self._kind)
                if found is not None:
                    self._follow(found)
                look_at = now + (LOOK_AGAIN_S if found and not self._absent_since else LOOK_SOON_S)
                if found is not None and self._watching:
                    with contextlib.suppress(Trouble, Refused):
                        self._queues.follow(workloads(self._connection))
            if now >= nodes_at and self._observer.lacks_room():
                nodes_at = now + NODES_S
                with contextlib.suppress(Unavailable):
                    self._nodes.room()
            self._remember()
            self._stopping.wait(KEEP_S)

    def _follow(self, found: discovery.Kinds) -> None:
        """Watch the kinds that there are."""
        if found.usable != self._kinds.usable:
            log.info("cluster %s executes %s", self._name, ", ".join(found.usable) or "nothing")
        if not self._watching:
            self._kinds = found
            return
        new: dict[Kind, Informer[ObjectRecord]] = {
            kind: self._informer(kind) for kind in found.watchable if kind not in self._objects
        }
        self._objects = {**self._objects, **new}  # at once: with some of them, objects of the others would look gone
        for informer in new.values():
            informer.start()
        for kind in tuple(self._absent_since):
            if kind not in found.absent:
                del self._absent_since[kind]
        for kind in found.absent:
            if (kind in self._objects or kind in self._remembered.kinds) and self._vanished(kind):
                self._leave(kind)
        self._kinds = found

    def _vanished(self, kind: Kind) -> bool:
        """Whether a kind is gone for good. An API server that has just started may not know its kinds yet."""
        since = self._absent_since.setdefault(kind, time.monotonic())
        informer = self._objects.get(kind)
        empty = informer is not None and informer.listed and not informer.values()
        return empty or time.monotonic() - since > VANISHED_S

    def _leave(self, kind: Kind) -> None:
        """Watch a kind no more: its objects are gone with it."""
        if (informer := self._objects.get(kind)) is not None:
            informer.stop()
            for record in informer.values():
                self._take_object(record.name, None)
            self._objects = {other: informer for other, informer in self._objects.items() if other != kind}
        self._remembered.update(self._remembered.kinds - {kind})

    def _remember(self) -> None:
        """Which kinds have objects, once that is known."""
        with contextlib.suppress(Unavailable):
            self._check()
            self._remembered.update(kind for kind, informer in self._objects.items() if informer.values())

    def _informer(self, kind: Kind) -> Informer[ObjectRecord]:
        def changed(names: set[str]) -> None:
            for name in names:
                self._take_object(name, informer.get(name))
                for pod in self._observer.pods_of(name):
                    self._keep_log(pod)
            self._wake()

        path = ATTEMPTS[kind].path(self._namespace)
        informer = Informer(self._connection, path, partial(read_object, kind), changed, selectors=OURS)
        return informer

    def _take_object(self, name: str, record: ObjectRecord | None) -> None:
        self._observer.take_object(name, record)
        if record is None:
            self._collector.vanished(name)

    def _take_pods(self, names: set[str]) -> None:
        for name in names:
            record = self._pods.get(name)
            before = self._observer.take_pod(name, record)
            if record is not None:
                self._keep_log(record)
            if before is not None and (record is None or record.uid != before.uid):
                self._collector.gone(before.uid)
        self._wake()

    def _take_events(self, about: set[str]) -> None:
        for name in about:
            self._observer.take_event(name)
        self._wake()

    def _take_queues(self) -> None:
        self._observer.take_queues()
        self._wake()

    def _keep_log(self, pod: PodRecord) -> None:
        """Have the pod's log read, once its container has started."""
        owner = self._observer.owner_of(pod)
        if owner is not None:
            self._read_log(owner.name, pod)

    def _read_log(self, name: str, pod: PodRecord) -> None:
        if pod.main is not None and pod.main.what in ("running", "terminated"):
            ended, first = pod.main.what == "terminated", pod.index == 0
            self._collector.consider(name, pod.name, pod.uid, pod.container, ended=ended, first=first)

    def _wake(self) -> None:
        for wake in self._wakers:
            wake()
