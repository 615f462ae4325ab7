"""Keeps the logs of this machine's pods small: a thread that compresses what is full, and all of it at the end.

A log that is longer than its limit loses its oldest pieces while its pod lives, so that this is seen with the pod.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from controlplane.clusters.local import shim
from controlplane.clusters.pieces import Limits, LogFile

log = logging.getLogger(__name__)
LOOK_S = 2.0


class Keeper:
    """Works from `start` to `close`. `living` are the folders of pods that write, `ended` those of deleted objects.

    `cut` is told a pod's folder and the first byte of its log that is kept, each time that this has changed.
    """

    def __init__(
        self,
        limits: Limits,
        living: Callable[[], list[Path]],
        ended: Callable[[], Iterator[Path]],
        cut: Callable[[Path, int], None],
    ) -> None:
        self._limits, self._living, self._ended, self._cut = limits, living, ended, cut
        self._over: queue.SimpleQueue[Path] = queue.SimpleQueue()
        self._said: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="local logs", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def over(self, folder: Path) -> None:
        """Nothing more is written to the logs of this object's pods."""
        self._over.put(folder)

    def close(self) -> None:
        """End after the log at hand."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        for folder in self._ended():
            self._over.put(folder)
        while not self._stopping.wait(LOOK_S):
            for pod in self._living():
                self._try(self._look, pod)
            while not self._over.empty() and not self._stopping.is_set():
                folder = self._over.get()
                for pod in folder.glob(f"*/{shim.LOG}"):
                    self._try(self._finish, pod.parent)

    def _look(self, pod: Path) -> None:
        written = LogFile(pod / shim.LOG)
        written.pack(self._limits.piece)
        if self._limits.most and (first := written.shorten(self._limits.most)):
            self._cut(pod, first)

    def _finish(self, pod: Path) -> None:
        written = LogFile(pod / shim.LOG)
        written.pack(self._limits.piece, whole=True)
        written.remove()

    def _try(self, work: Callable[[Path], None], pod: Path) -> None:
        """What cannot be done now stays as it is: said once, tried again with the next look or the next start."""
        try:
            work(pod)
        except FileNotFoundError:
            pass  # moved or forgotten meanwhile
        except OSError as error:
            if (told := error.strerror or str(error)) not in self._said:
                self._said.add(told)
                log.warning("logs are kept as they are for now: %s: %s", pod / shim.LOG, told)
        except Exception:
            log.exception("%s cannot be packed; the others can", pod / shim.LOG)
