"""One sleeping thread that calls back when a descriptor can be read, when a time has come, or when it is poked.

All callbacks run on it, under the lock that it was given, and it costs nothing between them.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import selectors
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)
Call = Callable[[], None]


class Watcher:
    """Calls `tick` after every round of callbacks, all under `lock`."""

    def __init__(self, lock: threading.RLock, tick: Call) -> None:
        self._lock, self._tick = lock, tick
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Call]] = []
        self._order = itertools.count()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closed = False
        self._selector.register(self._bell, selectors.EVENT_READ, self._quiet)
        self._thread = threading.Thread(target=self._run, name="local-cluster", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def when_readable(self, descriptor: int, call: Call) -> None:
        """Call whenever the descriptor can be read (a pidfd: when the process has ended), until `drop`."""
        self._selector.register(descriptor, selectors.EVENT_READ, call)

    def drop(self, descriptor: int) -> None:
        """Watch the descriptor no more, and close it."""
        self._selector.unregister(descriptor)
        os.close(descriptor)

    def after(self, seconds: float, call: Call) -> None:
        """Call once, that much later."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), call))
        self.poke()

    def poke(self) -> None:
        """Run `tick` soon."""
        os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Stop, and close what is still watched."""
        self._closed = True
        self.poke()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            self.drop(key.fd)
        self._selector.close()

    def _quiet(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)

    def _run(self) -> None:
        while not self._closed:
            timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            ready = self._selector.select(timeout)
            with self._lock:
                for key, _ in ready:
                    if self._selector.get_map().get(key.fd) is key:  # else an earlier callback has dropped it
                        self._guarded(key.data)
                while self._timers and self._timers[0][0] <= time.monotonic():
                    self._guarded(heapq.heappop(self._timers)[2])
                self._guarded(self._tick)

    def _guarded(self, call: Call) -> None:
        """One pod's trouble must not end the supervision of the others."""
        try:
            call()
        except Exception:
            log.exception("the local cluster could not do what it was about to; it goes on")
