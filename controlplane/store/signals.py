"""Who wants to know that something was stored: streams by run, and reconcilers. Hints within one process, no truth.

What other processes stored is told here too, where several share the store.

A listener that misses a hint finds the same facts in the store at its next look.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager


class Work:
    """Wakes everyone who waits for something to do, each by an event of their own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: set[threading.Event] = set()

    def wait(self) -> threading.Event:
        """The event of one who waits from now on; theirs to clear."""
        event = threading.Event()
        with self._lock:
            self._waiting.add(event)
        return event

    def leave(self, event: threading.Event) -> None:
        """Wake this one no more."""
        with self._lock:
            self._waiting.discard(event)

    def set(self) -> None:
        """Wake them all."""
        with self._lock:
            for event in self._waiting:
                event.set()


class Signals:
    """`work` is set when the reconcilers have something to do; a run's listeners are called after its commits."""

    def __init__(self) -> None:
        self.work = Work()
        self._lock = threading.Lock()
        self._listeners: defaultdict[str, list[Callable[[], None]]] = defaultdict(list)

    @contextmanager
    def listen(self, run_id: str, changed: Callable[[], None]) -> Generator[None]:
        """Call `changed`, from the writer's thread and soon done, after each commit that touched the run."""
        with self._lock:
            self._listeners[run_id].append(changed)
        try:
            yield
        finally:
            with self._lock:
                self._listeners[run_id].remove(changed)
                if not self._listeners[run_id]:
                    del self._listeners[run_id]

    def touched(self, run_ids: Iterable[str]) -> None:
        """Tell the listeners of these runs."""
        with self._lock:
            called = [changed for run_id in run_ids for changed in self._listeners.get(run_id, ())]
        for changed in called:
            changed()

    def everyone(self) -> None:
        """Tell all listeners, and the reconcilers: nobody knows what was missed."""
        with self._lock:
            called = [changed for listeners in self._listeners.values() for changed in listeners]
        for changed in called:
            changed()
        self.work.set()
