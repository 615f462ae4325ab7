"""One object as the cluster follows it: its identity, its place in the queue, its port and its pods."""

from __future__ import annotations

import contextlib
import socket
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from controlplane.clusters.base import ObservedJob
from controlplane.clusters.local import ports, shim
from controlplane.clusters.local.folder import ADMITTED, MANIFEST, OBJECT, SECRET, read
from controlplane.clusters.local.launch import share
from controlplane.clusters.local.pod import LocalPod
from controlplane.clusters.local.watcher import Watcher
from controlplane.render import Identity, PyTorchJob, identity_of, pods_of


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
        self.secret = read(folder / SECRET)
        self.deleting = (folder / shim.DELETING).exists()
        self.admitted: dict[str, Any] | None = read(folder / ADMITTED) if (folder / ADMITTED).exists() else None
        self.reservation: socket.socket | None = None
        self.pods = [
            LocalPod(pod, str(uuid.uuid5(uuid.UUID(self.uid), pod.name)), folder / pod.name, share(pod), watcher)
            for pod in pods_of(self.job)
        ]

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
        codes = [pod.end["code"] for pod in self.pods if pod.end is not None]
        return self.deleting or self.pods[0].end is not None or any(code != 0 for code in codes)

    def observe(self) -> ObservedJob:
        """The object as the protocol shows it."""
        pods = tuple(pod.observe() for pod in self.pods)
        return ObservedJob(self.name, self.uid, *self.identity, self.created, self.deleting, pods)
