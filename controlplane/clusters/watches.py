"""How often this process has begun each watch of a cluster anew, for its measurements."""

from __future__ import annotations

import threading
from collections import Counter


class Restarts:
    """A count by watch. Every method is thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, watch: str) -> None:
        """One more."""
        with self._lock:
            self._counts[watch] += 1

    def counts(self) -> dict[str, int]:
        """The counts by watch."""
        with self._lock:
            return dict(self._counts)


RESTARTS = Restarts()
