"""A second implementation of the cluster protocol, in memory: a test says what happens to a pod, and when."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from controlplane.clusters.base import (
    Caller,
    Capacity,
    Check,
    ClusterError,
    Manifest,
    NameConflict,
    ObservedJob,
    ObservedPod,
    Stacks,
    Traits,
)
from controlplane.domain.logs import LogExtent
from controlplane.render import identity_of
from controlplane.render.environment import pods_of


class Clock:
    """A clock that stands until a test moves it."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class MemoryCluster:
    """Does what the protocol says. `fail` (an exception) is raised by every call while it is set."""

    name = "memory"

    def __init__(self, *, cpus: int = 4, memory: int = 16 << 30, gpus: int = 0) -> None:
        self.jobs: dict[str, ObservedJob] = {}
        self.created: list[str] = []  # names, once for each object that was really made
        self.made: list[tuple[str, int]] = []  # and the attempts that they were made for
        self.deleted: list[str] = []
        self.secrets: dict[str, dict[str, str]] = {}
        self.written: dict[str, bytes] = {}
        self.given_up: dict[str, tuple[int, int]] = {}  # bytes and lines of the beginnings that are not kept
        self.seen = Stacks(problem="nothing runs here")
        self.fail: ClusterError | None = None
        self.refuse: ClusterError | None = None
        self.lock = threading.RLock()
        self._gone: set[str] = set()
        self._uids = itertools.count(1)
        self._wake: Callable[[], None] = lambda: None
        there = (cpus, memory, gpus)
        self._capacity = Capacity(*there, "H100" if gpus else None, *there, largest=there)
        self.shown = Traits()
        self.claims: dict[str, frozenset[str]] = {}
        self.callers: dict[str, Caller] = {}  # by token
        self.users: dict[tuple[str, str], str] = {}  # by token and verb
        self.found: list[Check] = []

    # --- the protocol ---------------------------------------------------------------------------------------------

    def traits(self) -> Traits:
        return self.shown

    def dry_run(self, manifest: Manifest) -> None:
        identity_of(manifest)
        self._maybe_fail()
        if self.refuse is not None:
            raise self.refuse

    def access_modes(self, claim: str, namespace: str) -> frozenset[str] | None:
        self._maybe_fail()
        return self.claims.get(claim if namespace == self.shown.namespace else f"{namespace}/{claim}")

    def authenticate(self, token: str) -> Caller | None:
        self._maybe_fail()
        return self.callers.get(token)

    def admit(self, token: str, verb: str) -> str | None:
        self._maybe_fail()
        return self.users.get((token, verb))

    def checks(self, claim: str = "") -> list[Check]:
        del claim
        return self.found

    def create(self, manifest: Manifest, secret: Mapping[str, str] | None = None) -> str:
        self._maybe_fail()
        if self.refuse is not None:
            raise self.refuse
        name, identity = manifest["metadata"]["name"], identity_of(manifest)
        key = (identity.run_id, identity.attempt, identity.spec_hash)
        with self.lock:
            there = self.jobs.get(name)
            if there is not None:
                if (there.run_id, there.attempt, there.spec_hash) != key:
                    raise NameConflict(f"{name} belongs to another run")
                return there.uid
            uid = f"uid-{next(self._uids)}"
            if name in self._gone:
                return uid
            self.created.append(name)
            self.made.append((identity.run_id, identity.attempt))
            pods = tuple(
                ObservedPod(pod.name, f"{uid}-{pod.rank}", pod.role, pod.number, "Pending", "Queued", "needs a place")
                for pod in pods_of(manifest)
            )
            self.jobs[name] = ObservedJob(name, uid, *key, datetime.now(UTC), deleting=False, pods=pods)
            self.secrets[name] = dict(secret or {})
        return uid

    def observe(self) -> list[ObservedJob]:
        self._maybe_fail()
        with self.lock:
            return list(self.jobs.values())

    def delete(self, name: str, uid: str | None = None) -> None:
        self._maybe_fail()
        with self.lock:
            job = self.jobs.get(name)
            self.deleted.append(name)
            self._gone.add(name)
            if job is None or (uid is not None and job.uid != uid and not job.gone):
                return
            if all(pod.phase in ("Succeeded", "Failed") for pod in job.pods):
                del self.jobs[name]
            else:
                self.jobs[name] = dataclasses.replace(job, deleting=True)

    def logs(self, name: str, pod: str, offset: int = 0, limit: int = 1 << 20) -> bytes:
        self._maybe_fail()
        kept = offset >= self.given_up.get(f"{name}/{pod}", (0, 0))[0]
        return self.written.get(f"{name}/{pod}", b"")[offset : offset + limit] if kept else b""

    def log_extent(self, name: str, pod: str) -> LogExtent:
        self._maybe_fail()
        first, lines = self.given_up.get(f"{name}/{pod}", (0, 0))
        return LogExtent(first, len(self.written.get(f"{name}/{pod}", b"")), lines)

    def stacks(self, name: str) -> Stacks:
        self._maybe_fail()
        return self.seen if name in self.jobs else Stacks(problem="no such object")

    def forget(self, name: str) -> None:
        self._gone.discard(name)

    def capacity(self) -> Capacity:
        self._maybe_fail()
        return self._capacity

    def watch(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def close(self) -> None:
        """Nothing runs here."""

    # --- what a test makes happen ---------------------------------------------------------------------------------

    def pod(self, name: str, index: int = 0, **changes: Any) -> None:
        """Change what is seen of a pod, counted from the master."""
        with self.lock:
            job = self.jobs[name]
            pods = list(job.pods)
            pods[index] = dataclasses.replace(pods[index], **changes)
            self.jobs[name] = dataclasses.replace(job, pods=tuple(pods))
        self._wake()

    def run(self, name: str) -> None:
        """Let every pod of an object run."""
        for index in range(len(self.jobs[name].pods)):
            self.pod(name, index, phase="Running", reason=None, message=None, started_at=datetime.now(UTC))

    def end(self, name: str, code: int | None, index: int = 0, **changes: Any) -> None:
        """Let a pod end with an exit code (None: lost)."""
        phase = "Succeeded" if code == 0 else "Failed"
        ended = {"finished_at": datetime.now(UTC), "reason": None if code == 0 else "Error", "message": None}
        self.pod(name, index, phase=phase, exit_code=code, **{**ended, **changes})

    def stop(self, name: str, code: int = 143) -> None:
        """What a deletion leads to: live pods end, then the object goes."""
        for index, pod in enumerate(self.jobs[name].pods):
            if pod.phase in ("Pending", "Running"):
                self.end(name, code, index)
        if self.jobs[name].deleting:
            self.vanish(name)

    def orphan(self, name: str) -> None:
        """Let an object be gone and its pods work on, as if someone had removed it without them."""
        with self.lock:
            self.jobs[name] = dataclasses.replace(self.jobs[name], uid="", gone=True)
            self._gone.add(name)
        self._wake()

    def vanish(self, name: str) -> None:
        """Let an object be gone, as if someone had removed it by hand."""
        with self.lock:
            del self.jobs[name]
            self._gone.add(name)
        self._wake()

    def _maybe_fail(self) -> None:
        if self.fail is not None:
            raise self.fail
