"""When runs that could not be reconciled are looked at again: each on its own, later and later, until it went well.

As controllers requeue with a limit of rate. News of the run, or a look at everything, comes before that: what decides
is always what is stored and seen then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from controlplane.reconcile.pace import Pace


class _Retry(NamedTuple):
    """How often in a row it went wrong, and when it is looked at again."""

    tries: int
    due_at: float


class Retries:
    """Runs by their ids. `clock` counts seconds, evenly."""

    def __init__(self, pace: Pace, clock: Callable[[], float] = time.monotonic) -> None:
        self._pace, self._clock = pace, clock
        self._waiting: dict[str, _Retry] = {}

    def failed(self, run_id: str) -> float:
        """It went wrong, once more; seconds until it is due again."""
        tries = self._waiting[run_id].tries + 1 if run_id in self._waiting else 1
        pause = self._pace.retry_backoff(tries)
        self._waiting[run_id] = _Retry(tries, self._clock() + pause)
        return pause

    def forget(self, run_id: str) -> None:
        """It went well, or has ended: its next failure is the first one."""
        self._waiting.pop(run_id, None)

    def due(self) -> set[str]:
        """Whose time has come."""
        now = self._clock()
        return {run_id for run_id, one in self._waiting.items() if one.due_at <= now}
