"""One pod as the cluster follows it. Its folder is the truth; this object can be made anew from it at any instant."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from controlplane.clusters.base import ObservedPod, PodPhase, termination_of
from controlplane.clusters.local import shim
from controlplane.clusters.local.share import Share
from controlplane.clusters.local.watcher import Watcher
from controlplane.clusters.pieces import LogFile
from controlplane.render.environment import Pod

log = logging.getLogger(__name__)
SHIM = [sys.executable, "-I", "-S", shim.__file__]
STARTS = 3  # tries of a shim that dies before its pod exists: a full disk, a machine without a process to spare
SOON_S = 0.05

Launch = Callable[["LocalPod"], tuple[dict[str, Any], int | None]]


class LocalPod:
    """A pod in `folder`: waiting until `start`, then followed to its end. Every method is called under the lock."""

    def __init__(self, pod: Pod, uid: str, folder: Path, share: Share, watcher: Watcher) -> None:
        self.pod, self.uid, self.folder, self.share = pod, uid, folder, share
        self.gpus: tuple[str, ...] = ()
        self.cores: tuple[int, ...] = ()
        self.waits_for = "its turn"
        self.end: dict[str, Any] | None = None
        self.log_from = LogFile(folder / shim.LOG).extent().first  # the first byte of its log that is kept
        self.dirty = True  # whether `observe` would say something new
        self._watcher = watcher
        self._launch: Launch | None = None
        self._running: dict[str, Any] | None = None
        self._process: int | None = None  # pidfd of the shim
        self._guard: int | None = None  # pidfd of the process that we started, which becomes the shim's guard
        self._stopping = self._signalled = False
        self._starts, self._problem = 0, ""

    def start(self, launch: Launch) -> None:
        """The pod was admitted: start it, or take it up again where an earlier control plane left it."""
        self._launch = launch
        self.look()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL after the grace period; a pod that never started never will."""
        if not self._stopping and self.end is None:
            self._stopping = True
            self.look()

    def look(self) -> None:
        """Bring what is known in line with the folder. Safe to call at any time, any number of times."""
        if self.end is not None:
            return
        if end := _read(self.folder / shim.EXIT):
            self._ended(end)
        elif self._guard is not None and not (self.folder / shim.POD).exists():
            return  # it is about to take the lock: leave it free, and wait for its word or its end
        elif (lock := shim.try_lock(str(self.folder / shim.LOCK))) is None:
            self._alive()
        else:
            try:
                start = self._dead()
            finally:
                os.close(lock)
            if start:
                self._spawn()

    def observe(self) -> ObservedPod:
        """The pod as the protocol shows it."""
        end = self.end
        if end is None:
            reason, message = (None, None) if self._running else self._waiting()
            phase: PodPhase = "Running" if self._running else "Pending"
            started = self._running["started"] if self._running else None
            return self._observed(phase, reason, message, started_at=_when(started))
        termination = termination_of(end["message"])
        return self._observed(
            "Succeeded" if end["code"] == 0 else "Failed",
            end["reason"],
            end.get("detail") or (None if termination is not None else end["message"] or None),
            exit_code=end["code"],
            signal=end["signal"],
            termination=termination,
            started_at=_when(end["started"]),
            finished_at=_when(end["finished"]),
        )

    def never(self, reason: str, message: str) -> None:
        """Record that the pod ended without having run."""
        self._record({"code": None, "signal": None, "reason": reason, "message": message, "started": None})

    def _waiting(self) -> tuple[str, str]:
        if self._launch:
            return "Starting", self._problem or "its process is being started"
        return "Queued", self.waits_for

    def _observed(self, phase: PodPhase, reason: str | None, message: str | None, **more: Any) -> ObservedPod:
        pod, more = self.pod, {"log_from": self.log_from, **more}
        return ObservedPod(pod.name, self.uid, pod.role, pod.number, phase, reason, message, **more)

    def _alive(self) -> None:
        """Something of the pod lives. Follow the shim, once it has said who it is; else look again soon."""
        record = _read(self.folder / shim.POD)
        if self._process is None and record and (process := _open_process(record)) is not None:
            self._process, self._running, self.dirty = process, record, True
            self._watcher.when_readable(process, self._shim_ended)
        if self._process is None:
            self._watcher.after(SOON_S, self.look)
        elif self._stopping and not self._signalled:
            self._signalled = True
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, signal.SIGTERM)

    def _dead(self) -> bool:
        """Nothing of the pod lives, and we hold its lock: settle its end, or say that it is to be started."""
        if end := _read(self.folder / shim.EXIT):  # published between our look and our lock
            self._ended(end)
        elif record := _read(self.folder / shim.POD):
            shim.sweep(str(self.folder / shim.TERMINATION))
            self._record(_lost(record))
        elif self._stopping:
            self.never("Deleted", "deleted before it started")
        elif self._starts == STARTS:
            self.never("StartError", self._problem or f"its process ended {STARTS} times before it could start")
        else:
            return self._launch is not None
        return False

    def _spawn(self) -> None:
        """Start a shim. Should another one be starting for this folder, one of the two sees the lock and leaves."""
        assert self._launch
        self._starts += 1
        record, port = self._launch(self)
        try:
            process, told = _spawn_shim(self.folder, record, port)
        except OSError as error:
            self._again(str(error))
            return
        self._watcher.when_readable(told, lambda: self._told(told))
        self._guard = os.pidfd_open(process)
        self._watcher.when_readable(self._guard, self._guard_ended)

    def _told(self, descriptor: int) -> None:
        said = os.read(descriptor, 4096).decode("utf-8", "replace")
        self._watcher.drop(descriptor)
        if said == "started":
            self.look()
        elif said:
            self._problem, self.dirty = said.removeprefix("error: "), True

    def _guard_ended(self) -> None:
        """The process that we started is over: it is ours to reap."""
        assert self._guard is not None
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self._guard, os.WEXITED | os.WNOHANG)
        self._watcher.drop(self._guard)
        self._guard = None
        if self._running is None and self.end is None:
            self._again(self._problem)

    def _shim_ended(self) -> None:
        assert self._process is not None
        self._watcher.drop(self._process)
        self._process = None
        self.look()

    def _again(self, problem: str) -> None:
        """A start that came to nothing: look at once, and after a second start, later."""
        self._problem, self.dirty = problem, True
        self._watcher.after(0.0 if self._stopping else 0.5 * (self._starts - 1), self.look)

    def _record(self, end: dict[str, Any]) -> None:
        """Write the end of a pod that has no shim to write it. A full disk must not keep it from being known."""
        end = {**end, "finished": time.time()}
        try:
            shim.write_atomically(str(self.folder / shim.EXIT), end)
        except OSError:
            log.exception("the end of pod %s could not be written", self.pod.name)
        self._ended(end)

    def _ended(self, end: dict[str, Any]) -> None:
        self.end, self.dirty = end, True
        if self._process is not None:
            self._watcher.drop(self._process)
            self._process = None


def _spawn_shim(folder: Path, record: dict[str, Any], port: int | None) -> tuple[int, int]:
    """The guard's pid, and where the shim will say how its start went. Raises OSError."""
    environ = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    command = [*SHIM, str(folder)]
    source, (told, tell) = os.memfd_create("launch"), os.pipe()
    os.set_blocking(told, False)
    with os.fdopen(source, "wb") as file, os.fdopen(tell, "wb"), contextlib.ExitStack() as undo:
        undo.callback(os.close, told)
        output = undo.enter_context((folder / shim.LOG).open("ab"))
        file.write(json.dumps(record).encode())
        file.flush()
        os.lseek(source, 0, os.SEEK_SET)
        given = [source, tell, output.fileno()] + ([] if port is None else [port])
        actions = [(os.POSIX_SPAWN_DUP2, descriptor, target) for target, descriptor in enumerate(given)]
        process = os.posix_spawn(command[0], command, environ, file_actions=actions, setsid=True)
        return process, os.dup(told)


def _lost(record: dict[str, Any]) -> dict[str, Any]:
    here = shim.identity(os.getpid())["boot"] == record["boot"]
    message = "its processes were killed from outside" if here else "the machine was restarted"
    return {"code": None, "signal": None, "reason": "Lost", "message": message, "started": record["started"]}


def _open_process(record: dict[str, Any]) -> int | None:
    """A pidfd of the very process that wrote the record; None where it is over."""
    try:
        process = os.pidfd_open(record["pid"])
    except OSError:
        return None
    same = shim.identity(record["pid"])
    if all(same[key] == record[key] for key in same):
        return process
    os.close(process)
    return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None


def _when(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
