"""How often runs are to report: few as soon as they like, many less often, so that all together cost the same."""

from __future__ import annotations

import time
from collections.abc import Callable

TOGETHER = 100  # reports a second of all runs, once they are so many that it matters
LONGEST_S = 4.0  # that a curve may be behind its run
WINDOW_S = 5.0  # in which each of them is heard of


class Pace:
    """Counts the runs that report."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._ends = clock, 0.0
        self._heard = set[str]()
        self._before = 0

    def heard(self, run_id: str) -> float:
        """This run has reported: the seconds that it is to leave before its next report."""
        now = self._clock()
        if now >= self._ends:
            self._before = len(self._heard) if now < self._ends + WINDOW_S else 0
            self._heard, self._ends = set(), now + WINDOW_S
        self._heard.add(run_id)
        return min(LONGEST_S, max(self._before, len(self._heard)) / TOGETHER)
