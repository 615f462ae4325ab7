"""One object as the cluster follows it: its identity, its place in the queue, its port and its pods."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import socket
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from controlplane.clusters.base import ObservedJob, ObservedPod
from controlplane.clusters.local import ports, shim
from controlplane.clusters.local.folder import ADMITTED, MANIFEST, OBJECT, PREEMPTED, SECRET, read
from controlplane.clusters.local.launch import share
from controlplane.clusters.local.line import Claim
from controlplane.clusters.local.pod import LocalPod
from controlplane.clusters.local.share import total
from controlplane.clusters.local.watcher import Watcher
from controlplane.domain.priorities import SHARED_BY, rank
from controlplane.render import Identity, PyTorchJob, identity_of, pods_of

STOPPED = {None, 128 + signal.SIGTERM, 128 + signal.SIGKILL}  # codes of pods that ended because they were told to


class LocalObject:
    """An object as it stands in its folder, with its pods."""

    def __init__(self, folder: Path, watcher: Watcher) -> None:
        manifest, record = read(folder / MANIFEST), read(folder / OBJECT)
        self.folder, self.name = folder, folder.name
        self.job = PyTorchJob.model_validate(manifest)
        self.identity: Identity = identity_of(manifest)
        self.uid: str = record["uid"]
        self.number: int = record["number"]
        self.created = datetime.fromtimestamp(record["created"], UTC)
        self.secret = read(folder / SECRET) if (folder / SECRET).exists() else {}  # gone just before the object is
        self.deleting = (folder / shim.DELETING).exists()
        self.admitted: dict[str, Any] | None = read(folder / ADMITTED) if (folder / ADMITTED).exists() else None
        self.preempted: dict[str, Any] | None = read(folder / PREEMPTED) if (folder / PREEMPTED).exists() else None
        self.reservation: socket.socket | None = None
        self._rank = rank(self.job.spec.pytorch_replica_specs.master.template.spec.priority_class_name)
        self._owner = self.job.metadata.labels.get(SHARED_BY, "")
        self.pods = [
            LocalPod(pod, str(uuid.uuid5(uuid.UUID(self.uid), pod.name)), folder / pod.name, share(pod), watcher)
            for pod in pods_of(self.job)
        ]
        self.asks = self.claim

    def hold(self, port: int) -> None:
        """Hold the port that was admitted, unless pods that run already do, or someone took it meanwhile."""
        with contextlib.suppress(OSError):
            self.reservation = ports.reserve(port)

    def release(self) -> None:
        """Hold the port no more: the pods' shims do, while they live."""
        if self.reservation is not None:
            self.reservation.close()
            self.reservation = None

    def waits(self, message: str) -> None:
        """Say what the queued object waits for."""
        for pod in self.pods:
            pod.dirty |= pod.waits_for != message
            pod.waits_for = message

    def take_dirty(self) -> bool:
        """Whether `observe` would say something new since this was last asked."""
        dirty = any(pod.dirty for pod in self.pods)
        for pod in self.pods:
            pod.dirty = False
        return dirty

    @property
    def ended(self) -> bool:
        """Whether every pod has ended."""
        return all(pod.end is not None for pod in self.pods)

    @property
    def over(self) -> bool:
        """Whether the rest is to be stopped: as the operator has it with cleanPodPolicy Running and restarts Never."""
        if self.deleting or self.preempted is not None or self.pods[0].end is not None:
            return True
        return any(pod.end is not None and pod.end["code"] != 0 for pod in self.pods)

    @property
    def claim(self) -> Claim:
        """What it asks for, or still holds; while it waits, that is what it `asks`."""
        return Claim(
            name=self.name,
            number=self.number,
            rank=self._rank,
            owner=self._owner,
            share=total(pod.share for pod in self.pods if pod.end is None),
            stopping=self.over,
        )

    def give_way(self, other: str) -> None:
        """Stop for `other`: written down before any signal. Raises OSError."""
        preempted = {"by": other, "at": time.time()}
        shim.write_atomically(str(self.folder / PREEMPTED), preempted)
        self.preempted = preempted

    def observe(self) -> ObservedJob:
        """The object as the protocol shows it."""
        pods = tuple(self._told(pod.observe()) for pod in self.pods)
        return ObservedJob(self.name, self.uid, *self.identity, self.created, self.deleting, pods)

    def _told(self, pod: ObservedPod) -> ObservedPod:
        """A pod that was stopped for another object says so."""
        if self.preempted is None or pod.phase != "Failed" or pod.exit_code not in STOPPED:
            return pod
        return dataclasses.replace(pod, reason="Preempted", message=f"it gave way to {self.preempted['by']}")
