"""Whose turn it is, for threads that take turns with more than they are. It knows nothing of what they do then."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """What is due when. Every method is called under `lock`.

    One idle thread at a time watches for the moment when the next is due, and another takes over from it: if all of
    them woke for each, that would cost more than the work. `spawn` starts a thread where none is idle, if it may.
    """

    def __init__(self, lock: threading.Lock, spawn: Callable[[], None], clock: Callable[[], float]) -> None:
        self._watcher, self._others = threading.Condition(lock), threading.Condition(lock)
        self._spawn, self._clock = spawn, clock
        self._queue: list[tuple[float, T]] = []
        self._idle = 0  # threads, without the one that watches
        self._watched = self._over = False

    def put(self, what: T, due: float) -> None:
        """Have it taken then. Of what is put twice, whoever takes it finds out by its `due` which one holds."""
        heapq.heappush(self._queue, (due, what))
        if self._watched and self._queue[0][0] == due:
            self._watcher.notify()
        self._watch()

    def take(self) -> tuple[float, T] | None:
        """The next one, once it is due, and when that was; None at the end."""
        while not self._over:
            wait = self._queue[0][0] - self._clock() if self._queue else None
            if wait is not None and wait <= 0:
                due, what = heapq.heappop(self._queue)
                self._watch()
                return due, what
            if wait is not None and not self._watched:
                self._watched = True
                self._watcher.wait(wait)
                self._watched = False
            else:
                self._idle += 1
                self._others.wait()
                self._idle -= 1
        return None

    def end(self) -> None:
        """Nothing is taken any more."""
        self._over = True
        self._watcher.notify_all()
        self._others.notify_all()

    def _watch(self) -> None:
        """Have somebody watch, where there is something to watch for."""
        if self._queue and not self._watched:
            self._others.notify() if self._idle else self._spawn()
