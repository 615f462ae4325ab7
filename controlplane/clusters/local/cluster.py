"""The local cluster: objects that were taken on, the queue before the machine, and their pods.

A pod starts when its whole object fits beside what runs; nothing overtakes the next one in `line`. What is on disk is
enough to go on after a kill at any instant: `docs/local-cluster.md` walks through it.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from controlplane.clusters.base import (
    Caller,
    Capacity,
    Check,
    Manifest,
    NameConflict,
    ObservedJob,
    Stacks,
    Traits,
    Unavailable,
)
from controlplane.clusters.decisions import DECISIONS
from controlplane.clusters.local import ports, shim
from controlplane.clusters.local.folder import ADMITTED, Folders
from controlplane.clusters.local.keeper import Keeper
from controlplane.clusters.local.launch import host_environment, launch_record, read_job
from controlplane.clusters.local.line import Claim, giving_way, in_order
from controlplane.clusters.local.machine import Machine, this_machine
from controlplane.clusters.local.objects import LocalObject
from controlplane.clusters.local.pod import LocalPod
from controlplane.clusters.local.share import Share, lacks, total, whole, whole_cores
from controlplane.clusters.local.stacks import stacks_of
from controlplane.clusters.local.watcher import Watcher
from controlplane.clusters.pieces import Limits, LogFile
from controlplane.domain.logs import LogExtent
from controlplane.render import Identity, PyTorchJob, identity_of, pods_of

log = logging.getLogger(__name__)
NAME = re.compile(r"[a-z][-a-z0-9]*")
AGAIN_S = 5.0  # after the disk refused
LOCK_S = 1.0


class LocalCluster:
    """`controlplane.clusters.base.Cluster` on this machine, with its objects under `root`.

    `machine` and `environment` (what every pod inherits) are found out unless given; `limits` are those of logs. Raises
    Unavailable where another control plane follows the same folder.
    """

    def __init__(
        self,
        root: Path,
        *,
        name: str = "local",
        machine: Machine | None = None,
        environment: Mapping[str, str] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._name = name
        self._machine = machine or this_machine()
        self._environment = host_environment() if environment is None else dict(environment)
        root.mkdir(parents=True, exist_ok=True)
        self._root_lock = _lock(root)
        self._folders = Folders(root.resolve())
        self._lock = threading.RLock()
        self._watcher = Watcher(self._lock, self._tick)
        self._wakers: list[Callable[[], None]] = []
        self._objects: dict[str, LocalObject] = {}
        self._observed: dict[str, ObservedJob] = {}
        self._served: dict[str, int] = {}  # by owner, how many had begun before its last one: a courtesy, not a truth
        self._keeper = Keeper(limits or Limits(), self._writing, self._folders.ended, self._cut)
        self._recover()
        self._keeper.start()
        self._watcher.start()
        self._watcher.poke()

    @property
    def name(self) -> str:
        """The cluster's name, as runs show it."""
        return self._name

    def traits(self) -> Traits:
        """See `Cluster.traits`: folders for storage, a secret for each attempt, and PyTorchJobs alone."""
        return Traits(reasons={"PyTorchJob": "the one kind that the local cluster executes"})

    def create(self, manifest: Manifest, secret: Mapping[str, str] | None = None) -> str:
        """See `Cluster.create`. Rejects what the machine cannot hold and fields that are not honoured."""
        job = read_job(manifest, secret or {}, self._machine)
        name, identity = job.metadata.name, identity_of(manifest)
        with self._lock:
            return self._taken(name, identity) or self._add(job, secret or {})

    def dry_run(self, manifest: Manifest) -> None:
        """See `Cluster.dry_run`."""
        job = read_job(manifest, None, self._machine)
        with self._lock:
            self._taken(job.metadata.name, identity_of(manifest))

    def observe(self) -> list[ObservedJob]:
        """See `Cluster.observe`: what the supervising thread last saw."""
        with self._lock:
            return list(self._observed.values())

    def delete(self, name: str, uid: str | None = None) -> None:
        """See `Cluster.delete`."""
        with self._lock:
            found = self._objects.get(name)
            if found is None or found.deleting or (uid is not None and uid != found.uid):
                return
            try:
                shim.write_atomically(str(found.folder / shim.DELETING), {"at": time.time()})
            except OSError as error:
                raise Unavailable(f"{found.folder}: {error.strerror}") from error
            found.deleting = True
            self._observed[name] = found.observe()
            self._watcher.poke()

    def logs(self, name: str, pod: str, offset: int = 0, limit: int = 1 << 20) -> bytes:
        """See `Cluster.logs`."""
        if not (NAME.fullmatch(name) and NAME.fullmatch(pod)):
            return b""
        return self._folders.log(name, pod, lambda log: log.read(max(0, offset), max(0, limit)))

    def log_extent(self, name: str, pod: str) -> LogExtent:
        """See `Cluster.log_extent`."""
        if not (NAME.fullmatch(name) and NAME.fullmatch(pod)):
            return LogExtent()
        return self._folders.log(name, pod, LogFile.extent)

    def stacks(self, name: str) -> Stacks:
        """See `Cluster.stacks`."""
        with self._lock:
            found = self._objects.get(name)
            pods = found.pods if found else []
            markers = [str(pod.folder / shim.TERMINATION) for pod in pods]
        return stacks_of(markers)

    def forget(self, name: str) -> None:
        """See `Cluster.forget`."""
        if NAME.fullmatch(name):
            self._folders.forget(name)

    def capacity(self) -> Capacity:
        """See `Cluster.capacity`; what queues does not count as used."""
        with self._lock:
            free = self._free()
        machine = self._machine
        cpus, memory, gpus = (max(0, int(amount)) for amount in (free.cpus, free.memory, free.gpus))
        there = machine.cpus, machine.memory, len(machine.gpus)
        return Capacity(*there, machine.gpu_type, cpus, memory, gpus, largest=there)

    def access_modes(self, claim: str, namespace: str) -> frozenset[str] | None:
        """See `Cluster.access_modes`: there are no claims here."""
        del claim, namespace
        return None

    def admit(self, token: str, verb: str) -> str | None:
        """See `Cluster.admit`: there are no users here."""
        del token, verb
        return None

    def authenticate(self, token: str) -> Caller | None:
        """See `Cluster.authenticate`: there are no service accounts here."""
        del token
        return None

    def checks(self, claim: str = "") -> list[Check]:
        """See `Cluster.checks`: there are no claims here."""
        del claim
        there = self._machine
        return [
            Check("machine", ok=True, detail=f"{there.cpus} CPUs, {there.memory >> 30} GiB, {len(there.gpus)} GPUs")
        ]

    def watch(self, wake: Callable[[], None]) -> None:
        """See `Cluster.watch`."""
        self._wakers.append(wake)

    def close(self) -> None:
        """See `Cluster.close`."""
        self._keeper.close()
        self._watcher.close()
        for found in self._objects.values():
            found.release()
        os.close(self._root_lock)

    def _recover(self) -> None:
        """Take up what an earlier control plane left; what it had admitted comes back with its port and its GPUs.

        What waits and the machine can hold no more ends here.
        """
        objects = [LocalObject(self._folders.live / name, self._watcher) for name in self._folders.names()]
        for found in sorted(objects, key=lambda found: found.number):
            self._objects[found.name] = found
            if found.admitted:
                self._serve(found)
                found.hold(found.admitted["port"])
                self._start(found, found.admitted)
            elif not found.over and lacks(found.asks.share, whole(self._machine)):
                for pod in found.pods:
                    pod.never("Rejected", "the machine has become smaller than this needs")
            self._observed[found.name] = found.observe()

    def _taken(self, name: str, identity: Identity) -> str | None:
        """The uid of the object that has this name, if one has. Raises NameConflict where it is not the same one."""
        found = self._objects.get(name)
        known = (found.identity, found.uid) if found else self._folders.archived(name)
        if known is not None and known[0] != identity:
            raise NameConflict(f"{name} belongs to {known[0]}, not to {identity}")
        return known[1] if known else None

    def _add(self, job: PyTorchJob, secret: Mapping[str, str]) -> str:
        number = max((found.number for found in self._objects.values()), default=0) + 1
        pods = [pod.name for pod in pods_of(job)]
        record = {"uid": str(uuid.uuid4()), "number": number, "created": time.time(), "pods": pods}
        try:
            found = LocalObject(self._folders.add(job.manifest(), record, secret), self._watcher)
        except OSError as error:
            raise Unavailable(f"{error.filename or self._folders.live}: {error.strerror}") from error
        self._objects[found.name] = found
        self._observed[found.name] = found.observe()
        self._watcher.poke()
        return found.uid

    # --- for the thread that keeps the logs ------------------------------------------------------------------------

    def _writing(self) -> list[Path]:
        with self._lock:
            return [pod.folder for pod in self._admitted_pods()]

    def _cut(self, folder: Path, first: int) -> None:
        with self._lock:
            for pod in self._admitted_pods():
                if pod.folder == folder and pod.log_from != first:
                    pod.log_from, pod.dirty = first, True
                    self._watcher.poke()

    # --- on the supervising thread ---------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Level-triggered: stop what is over, put away what is gone, admit what fits, and say what changed."""
        for found in list(self._objects.values()):
            if found.over:
                for pod in found.pods:
                    pod.stop()
            if found.ended:
                found.release()
                if found.deleting:
                    self._keeper.over(self._folders.archive(found.name))
                    del self._objects[found.name]
        self._admit()
        self._publish()

    def _admit(self) -> None:
        """Start those that are next while they fit; tell each of the others behind whom it waits.

        That is the one right before it, not the first: it stays so while the line moves on, and each of a thousand
        hears nothing new whenever one begins.
        """
        while (line := self._line()) and self._begin(self._objects[line[0].name]):
            pass
        for before, claim in itertools.pairwise(line):
            self._objects[claim.name].waits(f"waits behind {before.name}")

    def _line(self) -> list[Claim]:
        """Those that wait, the next one first: what takes the longer the more they are."""
        started = time.perf_counter()
        claims = (found.asks for found in self._objects.values() if not (found.admitted or found.over))
        line = in_order(claims, self._held(), whole(self._machine), self._served)
        if line:
            DECISIONS.observe(time.perf_counter() - started)
        return line

    def _held(self) -> list[Claim]:
        return [found.claim for found in self._objects.values() if found.admitted and not found.ended]

    def _begin(self, found: LocalObject) -> bool:
        """Start the next one if it fits; whether it did. Else others give way, as far as that helps."""
        claim, free = found.claim, self._free()
        short = ", ".join(f"{needs}, {left.split()[0]} free" for _, needs, left in lacks(claim.share, free))
        if not short:
            problem = self._take_on(found)
            if problem:
                found.waits(problem)
            return not problem
        for one in giving_way(claim, self._held(), free):
            try:
                self._objects[one.name].give_way(found.name)
            except OSError as error:
                log.warning("object %s cannot give way yet: %s", one.name, error)
                self._watcher.after(AGAIN_S, self._watcher.poke)
                break
            self._watcher.poke()
        stopping = [one.name for one in self._held() if one.stopping and one.rank < claim.rank]
        found.waits(f"needs {short}" + (f"; {', '.join(stopping)} gives way" if stopping else ""))
        return False

    def _take_on(self, found: LocalObject) -> str:
        """Write down that the object is admitted, then start it; why that could not be, otherwise."""
        free = iter(self._free_gpus())
        gpus = {pod.pod.name: [next(free) for _ in range(int(pod.share.gpus))] for pod in found.pods}
        unused = iter(self._free_cores())
        cores = {pod.pod.name: list(itertools.islice(unused, whole_cores(pod.share))) for pod in found.pods}
        try:
            found.reservation = ports.reserve()
            admitted = {"port": found.reservation.getsockname()[1], "gpus": gpus, "cores": cores}
            shim.write_atomically(str(found.folder / ADMITTED), admitted)
        except OSError as error:
            found.release()
            self._watcher.after(AGAIN_S, self._watcher.poke)
            return str(error)
        found.admitted = admitted
        self._serve(found)
        self._start(found, admitted)
        return ""

    def _serve(self, found: LocalObject) -> None:
        self._served[found.claim.owner] = 1 + max(self._served.values(), default=0)

    def _start(self, found: LocalObject, admitted: Mapping[str, Any]) -> None:
        """Start an admitted object's pods, or take up those that an earlier control plane started."""

        def launch(pod: LocalPod) -> tuple[dict[str, Any], int | None]:
            port, held = admitted["port"], found.reservation
            record = launch_record(found.job, pod.pod, pod.folder, self._environment, found.secret, port)
            record["cores"] = pod.cores
            if self._machine.gpus:
                record["env"]["CUDA_VISIBLE_DEVICES"] = ",".join(pod.gpus)
            return record, held.fileno() if held else None

        for pod in found.pods:
            pod.gpus = tuple(admitted["gpus"][pod.pod.name])
            pod.cores = tuple(admitted.get("cores", {}).get(pod.pod.name, ()))
        for pod in found.pods:
            pod.start(launch)

    def _admitted_pods(self) -> Iterator[LocalPod]:
        return (pod for found in self._objects.values() if found.admitted for pod in found.pods if pod.end is None)

    def _free(self) -> Share:
        return whole(self._machine) - total(pod.share for pod in self._admitted_pods())

    def _free_gpus(self) -> list[str]:
        taken = {gpu for pod in self._admitted_pods() for gpu in pod.gpus}
        return [gpu for gpu in self._machine.gpus if gpu not in taken]

    def _free_cores(self) -> list[int]:
        taken = {core for pod in self._admitted_pods() for core in pod.cores}
        return [core for core in self._machine.cores if core not in taken]

    def _publish(self) -> None:
        gone = self._observed.keys() - self._objects.keys()
        changed = [found for found in self._objects.values() if found.take_dirty()]
        for name in gone:
            del self._observed[name]
        for found in changed:
            self._observed[found.name] = found.observe()
        if gone or changed:
            for wake in self._wakers:
                wake()


def _lock(root: Path) -> int:
    """The folder's lock. A process that a killed control plane was just starting holds it for an instant longer."""
    deadline = time.monotonic() + LOCK_S
    while (lock := shim.try_lock(str(root / "lock"))) is None:
        if time.monotonic() > deadline:
            raise Unavailable(f"{root}: another control plane follows this folder")
        time.sleep(0.02)
    return lock
