"""Keeps what pods write: a bounded number of threads reads the logs of all of them into the archive while they live.

Each pod is followed by a thread while there are threads enough; beyond that, first pods are, as far as threads go, and
the others take turns: who writes often, who is silent less and less, until it rests. Of those that rest one after the
other is looked at, at a pace that does not grow with them. What a pod wrote last is read when its container has ended,
before its object is deleted (`settled`).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from controlplane.clusters.base import ObservedJob
from controlplane.clusters.kubernetes.archive import Continuation, PodLog
from controlplane.clusters.kubernetes.connection import Connection, Refused, Stream, Trouble
from controlplane.clusters.kubernetes.resources import PODS
from controlplane.clusters.kubernetes.turns import Turns
from controlplane.clusters.shelf import Shelf
from controlplane.domain.errors import StoreError

log = logging.getLogger(__name__)
THREADS = 24
FOLLOWERS = 2 / 3  # of the threads, at most, for first pods, where there are more pods than threads
AGAIN_S = 1.0  # between two reads of one pod, at least
READS_PER_S = 100  # of all pods that take turns and write
SILENT_S, SILENT_READS_PER_S = 10.0, 2  # of those that rest: each so often at most, all of them so often
RESTS = math.inf  # the pause of a pod that rests
LONGER = 4  # times what a pod was left alone for, once it has written nothing meanwhile
TROUBLE_S = 3.0
FOLLOW_S, READ_S = (3.0, 60.0), (3.0, 30.0)  # a pod that is silent for longer is asked anew
NOT_FOUND = 404
UNREADABLE = frozenset({400, 403, 405})


@dataclass(eq=False, slots=True)
class Reading:
    """What is at hand of a log while it is read, and between two reads while its pod writes."""

    log: PodLog
    last: Continuation | None = None
    stream: Stream | None = None


@dataclass(eq=False, slots=True)
class Source:
    """A pod whose log is read: `ended` once its container will write no more, `done` once all of it is here.

    `first`: it is its object's first pod. `due`: when it is read next, `pause` seconds after the last time. `listed`:
    it is among those that rest, or has been and was not passed since. Thousands of these rest: they are kept small.
    """

    object: str
    pod: str
    uid: str
    container: str
    first: bool = False
    ended: bool = False
    done: bool = False
    gone: bool = False
    unreadable: bool = False
    forgotten: bool = False
    busy: bool = False
    listed: bool = False
    reading: Reading | None = None
    due: float = 0.0
    pause: float = 0.0

    def __lt__(self, other: Source) -> bool:
        """Of several that are due at once, any may be the first."""
        return False


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
        self._cuts: dict[str, dict[str, int]] = {}  # by object and the pod's uid
        self._forgotten: set[str] = set()  # objects that live
        self._lock = threading.Lock()
        self._turns = Turns[Source](self._lock, self._spawn, clock)
        self._resting: deque[Source] = deque()
        self._waker: tuple[float, Source] | None = None  # of those that rest, the one that has its turn next
        self._followed = 0  # first pods, while there are more pods than threads
        self._settled = threading.Condition(self._lock)
        self._threads: list[threading.Thread] = []
        self._stopping = False

    def consider(self, name: str, pod: str, uid: str, container: str, *, ended: bool, first: bool = False) -> None:
        """The container of a pod of object `name` has started, or has ended; `first`: it is the object's first pod."""
        with self._lock:
            source = self._sources.get(uid)
            if name in self._forgotten:
                return
            if source is None:
                source = self._sources[uid] = Source(name, pod, uid, container, first, ended)
                self._queue(source, 0.0)
                if len(self._sources) == self._most + 1:
                    self._interrupt()  # from now on they take turns
            elif ended and not source.ended:
                source.ended = True
                if not source.busy:
                    self._queue(source, 0.0)

    def wanted(self, uid: str) -> None:
        """Somebody looks at what this pod writes: it is read soon, however silent it was."""
        with self._lock:
            source = self._sources.get(uid)
            if source is None or source.busy or source.done:
                return
            if source.pause == RESTS:
                self._queue(source, 0.0)
            elif source.pause > AGAIN_S:
                self._queue(source, max(0.0, source.due - source.pause + AGAIN_S - self._clock()))

    def gone(self, uid: str) -> None:
        """The pod is not there any more."""
        with self._lock:
            source = self._sources.get(uid)
            if source is not None:
                source.ended = source.gone = True
                if source.done:
                    self._drop(source)
                elif not source.busy:
                    self._queue(source, 0.0)

    def settled(self, uids: Iterable[str], wait_s: float) -> bool:
        """Whether the logs of these pods, which have ended, are here, as far as they can be had; waits a while."""
        wanted = set(uids)
        with self._lock:
            return self._settled.wait_for(lambda: not self._unsettled(wanted), wait_s)

    def cuts(self) -> dict[str, dict[str, int]]:
        """By object, and by uid of its pods whose log has lost its beginning: the first byte kept."""
        with self._lock:
            return {name: dict(cuts) for name, cuts in self._cuts.items()}

    def forget(self, name: str, *, lives: bool = False) -> None:
        """Remove the archive of an object; of one that still `lives` nothing more is kept."""
        with self._lock:
            if lives:
                self._forgotten.add(name)
            for source in [source for source in self._sources.values() if source.object == name]:
                source.done = source.forgotten = True
                if source.reading is not None and source.reading.stream is not None:
                    source.reading.stream.close()
                self._drop(source)
        self._archive.remove(name)

    def vanished(self, name: str) -> None:
        """An object is there no more: none of its pods is considered again."""
        with self._lock:
            self._forgotten.discard(name)

    def close(self) -> None:
        """Stop reading; another instance goes on where this one stopped."""
        with self._lock:
            self._stopping = True
            self._interrupt()
            self._turns.end()
        for thread in self._threads:
            thread.join(2.0)

    def _interrupt(self) -> None:
        """Under the lock: whoever follows a pod leaves it."""
        for source in self._sources.values():
            if source.reading is not None and source.reading.stream is not None:
                source.reading.stream.close()

    def _unsettled(self, wanted: set[str]) -> list[Source]:
        found = (self._sources.get(uid) for uid in wanted)
        return [source for source in found if source and not (source.done or source.unreadable)]

    def _drop(self, source: Source) -> None:
        """Under the lock: nothing is known of it any more."""
        self._sources.pop(source.uid, None)
        if cuts := self._cuts.get(source.object):
            cuts.pop(source.uid, None)
            if not cuts:
                del self._cuts[source.object]

    def _queue(self, source: Source, delay: float) -> None:
        """Under the lock: a thread shall read this, now or later."""
        source.due, source.pause = self._clock() + delay, delay
        self._turns.put(source, source.due)

    def _rest(self, source: Source) -> None:
        """Under the lock: it is read again once all others that rest have been."""
        source.due = source.pause = RESTS
        if not source.listed:
            source.listed = True
            self._resting.append(source)
        if self._waker is None:
            self._wake_next()

    def _wake_next(self) -> None:
        """Under the lock: the next one of those that rest has its turn soon."""
        self._waker, several = None, len(self._resting)
        while self._resting and self._waker is None:
            source = self._resting.popleft()
            source.listed = False
            if source.pause == RESTS and not (source.busy or source.done):  # else it was queued since
                source.due = self._clock() + max(SILENT_S / several, 1 / SILENT_READS_PER_S)
                self._waker = source.due, source
                self._turns.put(source, source.due)

    def _spawn(self) -> None:
        """Under the lock: a thread more, if there may be."""
        if len(self._threads) < self._most and not self._stopping:
            thread = threading.Thread(target=self._work, name=f"logs {len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

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
            with self._lock:
                source.busy = False
                if source.reading is not None:
                    source.reading.stream = None
                if source.forgotten:  # while it was read
                    self._archive.remove(source.object)
                if source.done and source.gone:
                    self._drop(source)
                elif not source.done and not self._stopping:
                    delay = min(delay, TROUBLE_S) if source.ended else delay
                    self._rest(source) if delay == RESTS else self._queue(source, delay)
                if source.ended:
                    self._settled.notify_all()

    def _visit(self, source: Source) -> float:
        """Read; after how long to come back. Raises Trouble and OSError."""
        try:
            return self._read(source)
        except Refused as error:
            if error.status == NOT_FOUND and source.gone:  # and not a kubelet that has just started
                if source.reading is not None and source.reading.last is not None:
                    source.reading.last.end(final=True)
                source.done = True
                return 0.0
            source.unreadable = error.status in UNREADABLE
            log.debug("the log of %s: %s", source.pod, error)
            return TROUBLE_S
        except (OSError, StoreError):
            with self._lock:  # a part of what came may be written, and its cursor not: what is there is looked at anew
                source.reading = None
            raise

    def _next(self) -> Source | None:
        """The next one that is due; None at the end."""
        with self._lock:
            while (taken := self._turns.take()) is not None:
                due, source = taken
                if taken == self._waker:
                    self._wake_next()
                if due == source.due and not (source.busy or source.done):  # else it was queued anew since
                    source.busy = True
                    return source
        return None

    def _read(self, source: Source) -> float:
        """Read what there is, and follow it; after how long to come back. Raises Trouble, Refused and OSError."""
        kept = (
            source.reading.log if source.reading else PodLog(self._archive, f"{source.object}/{source.pod}", source.uid)
        )
        if kept.cursor.done:
            source.done = True
            return 0.0
        final, before = source.ended, kept.cursor
        with self._lock:
            crowded = len(self._sources) > self._most
            follow = not final and (not crowded or (source.first and self._followed < int(self._most * FOLLOWERS)))
            taken = follow and crowded
            self._followed += taken
        try:
            continuation = self._stream(source, kept, follow=follow, crowded=crowded)
        finally:
            with self._lock:
                self._followed -= taken
        if continuation is None:
            return AGAIN_S
        continuation.end(final=final)
        if final:
            kept.finish()
            source.done = True
        silent = not follow and kept.cursor is before
        with self._lock:
            if kept.first:
                self._cuts.setdefault(source.object, {})[source.uid] = kept.first
            last = continuation if continuation.pending else None
            source.reading = Reading(kept, last) if last or not (silent or final) else None
            return 0.0 if source.ended else self._pause(source, silent=silent)

    def _stream(self, source: Source, kept: PodLog, *, follow: bool, crowded: bool) -> Continuation | None:
        """Archive what comes; None where it was not waited for. Raises Trouble, Refused and OSError."""
        query = {"container": source.container, "timestamps": "true"}
        query |= {"follow": "true"} if follow else {}
        query |= {"sinceTime": kept.since} if kept.since else {}
        path = PODS.path(self._connection.namespace, source.pod, "log")
        continuation = kept.continued()
        with self._connection.stream("GET", path, query=query, timeout=FOLLOW_S if follow else READ_S) as stream:
            with self._lock:
                source.reading = Reading(kept, continuation, stream)
                if self._stopping or (follow and not crowded and len(self._sources) > self._most):
                    return None  # `_interrupt` came before it
            source.unreadable = False
            for piece in stream:
                continuation.take(piece)
        return continuation

    def _pause(self, source: Source, *, silent: bool) -> float:
        """Under the lock: after how long to come back to a pod that has been silent since the last time, or not."""
        turn = max(AGAIN_S, (len(self._sources) - len(self._resting)) / READS_PER_S)
        longer = max(turn, LONGER * source.pause)
        return turn if not silent else RESTS if longer > SILENT_S else longer


def with_cuts(job: ObservedJob, cuts: Mapping[str, int]) -> ObservedJob:
    """The object with the beginnings that logs of its pods have lost, by uid."""
    pods = tuple(replace(pod, log_from=cuts.get(pod.uid, 0)) for pod in job.pods)
    return replace(job, pods=pods)
