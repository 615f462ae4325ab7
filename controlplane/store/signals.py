"""Who wants to know that something was stored: streams by run, and reconcilers. Hints within one process, no truth.

What other processes stored is told here too, where several share the store.

A listener that misses a hint finds the same facts in the store at its next look.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterable
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


class News:
    """The runs that were touched since the last `take`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._run_ids: set[str] | None = None

    def add(self, run_ids: Iterable[str]) -> None:
        """These were."""
        with self._lock:
            if self._run_ids is not None:
                self._run_ids.update(run_ids)

    def lose(self) -> None:
        """Nobody knows which were."""
        with self._lock:
            self._run_ids = None

    def take(self) -> set[str] | None:
        """Their ids, each once; None where any may have been, as at the first time."""
        with self._lock:
            taken, self._run_ids = self._run_ids, set()
        return taken


class Signals:
    """`work` is set when the reconcilers have something to do; a run's listeners are called after its commits."""

    def __init__(self) -> None:
        self.work = Work()
        self._news: list[News] = []
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

    def collect(self) -> News:
        """The runs that are touched from now on, for one who looks at them later."""
        news = News()
        with self._lock:
            self._news.append(news)
        return news

    def forsake(self, news: News) -> None:
        """Nobody looks at these any more."""
        with self._lock:
            self._news.remove(news)

    def touched(self, run_ids: Collection[str]) -> None:
        """Tell the listeners of these runs."""
        with self._lock:
            for news in self._news:
                news.add(run_ids)
            called = [changed for run_id in run_ids for changed in self._listeners.get(run_id, ())]
        for changed in called:
            changed()

    def everyone(self) -> None:
        """Tell all listeners, and the reconcilers: nobody knows what was missed."""
        with self._lock:
            for news in self._news:
                news.lose()
            called = [changed for listeners in self._listeners.values() for changed in listeners]
        for changed in called:
            changed()
        self.work.set()
