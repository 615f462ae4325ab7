"""Keeps what pods write: a bounded number of threads reads the logs of all of them into the archive while they live.

Each pod is followed by a thread while there are threads enough; beyond that, pods take turns. What a pod wrote last is
read when its container has ended, before its object is deleted (`settled`).
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from controlplane.clusters.kubernetes.archive import Continuation, PodLog
from controlplane.clusters.kubernetes.connection import Connection, Refused, Stream, Trouble
from controlplane.clusters.kubernetes.resources import PODS
from controlplane.clusters.shelf import Shelf
from controlplane.domain.errors import StoreError

log = logging.getLogger(__name__)
THREADS = 24
AGAIN_S = 1.0  # between two reads of one pod, at least
READS_PER_S = 100  # of all pods that take turns
TROUBLE_S = 3.0
FOLLOW_S, READ_S = (3.0, 60.0), (3.0, 30.0)  # a pod that is silent for longer is asked anew
NOT_FOUND = 404
UNREADABLE = frozenset({400, 403, 405})


@dataclass(eq=False)
class Source:
    """A pod whose log is read: `ended` once its container will write no more, `done` once all of it is here."""

    object: str
    pod: str
    uid: str
    container: str
    ended: bool = False
    done: bool = False
    gone: bool = False
    unreadable: bool = False
    log: PodLog | None = None
    last: Continuation | None = None
    stream: Stream | None = None
    busy: bool = False
    due: float = field(default=0.0)


class Collector:
    """Archives logs on the shelf `archive`."""

    def __init__(
        self,
        connection: Connection,
        archive: Shelf,
        *,
        threads: int = THREADS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection, self._archive, self._most, self._clock = connection, archive, threads, clock
        self._sources: dict[str, Source] = {}  # by the pod's uid
        self._waiting: list[tuple[float, int, Source]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._stopping = False

    def consider(self, name: str, pod: str, uid: str, container: str, *, ended: bool) -> None:
        """The container of a pod of object `name` has started, or has ended."""
        with self._changed:
            source = self._sources.get(uid)
            if source is None:
                source = self._sources[uid] = Source(name, pod, uid, container, ended)
                self._queue(source, 0.0)
                if len(self._sources) == self._most + 1:
                    self._interrupt()  # from now on they take turns
            elif ended and not source.ended:
                source.ended = True
                if not source.busy:
                    self._queue(source, 0.0)

    def gone(self, uid: str) -> None:
        """The pod is not there any more."""
        with self._changed:
            source = self._sources.get(uid)
            if source is not None:
                source.ended = source.gone = True
                if source.done:
                    del self._sources[uid]
                elif not source.busy:
                    self._queue(source, 0.0)

    def settled(self, uids: Iterable[str], wait_s: float) -> bool:
        """Whether the logs of these pods, which have ended, are here, as far as they can be had; waits a while."""
        wanted = set(uids)
        with self._changed:
            return self._changed.wait_for(lambda: not self._unsettled(wanted), wait_s)

    def cuts(self) -> dict[str, int]:
        """By uid of the pods whose log has lost its beginning: the first byte kept."""
        with self._changed:
            return {uid: one.log.first for uid, one in self._sources.items() if one.log is not None and one.log.first}

    def forget(self, name: str) -> None:
        """Remove the archive of an object."""
        with self._changed:
            for uid in [uid for uid, source in self._sources.items() if source.object == name]:
                self._sources.pop(uid).done = True
        self._archive.remove(name)

    def close(self) -> None:
        """Stop reading; another instance goes on where this one stopped."""
        with self._changed:
            self._stopping = True
            self._interrupt()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(2.0)

    def _interrupt(self) -> None:
        """Under the lock: whoever follows a pod leaves it."""
        for source in self._sources.values():
            if source.stream is not None:
                source.stream.close()

    def _unsettled(self, wanted: set[str]) -> list[Source]:
        found = (self._sources.get(uid) for uid in wanted)
        return [source for source in found if source and not (source.done or source.unreadable)]

    def _queue(self, source: Source, delay: float) -> None:
        """Under the lock: a thread shall read this, now or later."""
        source.due = self._clock() + delay
        heapq.heappush(self._waiting, (source.due, next(self._order), source))
        if len(self._waiting) > self._idle and len(self._threads) < self._most:
            thread = threading.Thread(target=self._work, name=f"logs {len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._changed.notify_all()

    def _work(self) -> None:
        while (source := self._next()) is not None:
            delay = TROUBLE_S
            try:
                delay = self._visit(source)
            except Trouble as error:
                log.debug("the log of %s: %s", source.pod, error)
            except (OSError, StoreError) as error:
                log.warning("the log of %s cannot be kept: %s", source.pod, error)
            except Exception:  # one pod's trouble must not cost the others their thread
                log.exception("the log of %s cannot be read", source.pod)
            with self._changed:
                source.busy, source.stream = False, None
                if source.done and source.gone:
                    self._sources.pop(source.uid, None)
                elif not source.done and not self._stopping:
                    self._queue(source, delay)
                self._changed.notify_all()

    def _visit(self, source: Source) -> float:
        """Read; after how long to come back. Raises Trouble and OSError."""
        try:
            return self._read(source)
        except Refused as error:
            if error.status == NOT_FOUND and source.gone:  # and not a kubelet that has just started
                if source.last is not None:
                    source.last.end(final=True)
                source.done = True
                return 0.0
            source.unreadable = error.status in UNREADABLE
            log.debug("the log of %s: %s", source.pod, error)
            return TROUBLE_S

    def _next(self) -> Source | None:
        """The next one that is due; None at the end."""
        with self._changed:
            while not self._stopping:
                wait = self._waiting[0][0] - self._clock() if self._waiting else None
                if wait is None or wait > 0:
                    self._idle += 1
                    self._changed.wait(wait)
                    self._idle -= 1
                    continue
                due, _, source = heapq.heappop(self._waiting)
                if due == source.due and not (source.busy or source.done):  # else it was queued anew since
                    source.busy = True
                    return source
        return None

    def _read(self, source: Source) -> float:
        """Read what there is, and follow it; after how long to come back. Raises Trouble, Refused and OSError."""
        source.log = source.log or PodLog(self._archive, f"{source.object}/{source.pod}", source.uid)
        if source.log.cursor.done:
            source.done = True
            return 0.0
        final = source.ended
        follow = not final and len(self._sources) <= self._most
        query = {"container": source.container, "timestamps": "true"}
        query |= {"follow": "true"} if follow else {}
        query |= {"sinceTime": source.log.since} if source.log.since else {}
        path = PODS.path(self._connection.namespace, source.pod, "log")
        continuation = source.log.continued()
        with self._connection.stream("GET", path, query=query, timeout=FOLLOW_S if follow else READ_S) as stream:
            with self._changed:
                source.stream = stream
                if self._stopping or (follow and len(self._sources) > self._most):  # `_interrupt` came before it
                    return AGAIN_S
            source.last, source.unreadable = continuation, False
            for piece in stream:
                continuation.take(piece)
        continuation.end(final=final)
        if final:
            source.log.finish()
            source.done = True
        return 0.0 if source.ended else max(AGAIN_S, len(self._sources) / READS_PER_S)
