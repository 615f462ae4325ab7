"""How fast the reconciler looks, waits and gives up. Seconds, unless a name says otherwise."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """`tick_s` between looks while a run lives, `idle_s` while none does; the rest as docs/lifecycle.md says."""

    tick_s: float = 1.0
    idle_s: float = 30.0
    lease_s: float = 60.0
    first_backoff_s: float = 1.0
    longest_backoff_s: float = 300.0
    longest_submit_backoff_s: float = 20.0
    longest_retry_backoff_s: float = 60.0
    free_restarts: int = 20
    patience_s: float = 300.0

    def restart_backoff(self, restarts: int) -> float:
        """How long to wait before the next attempt, after so many restarts without a new checkpoint."""
        return float(min(self.longest_backoff_s, self.first_backoff_s * 2.0 ** min(restarts - 1, 32)))

    def submit_backoff(self, tries: int) -> float:
        """How long to wait before the cluster is asked again, after so many tries; jittered."""
        return _jittered(tries, self.longest_submit_backoff_s)

    def retry_backoff(self, tries: int) -> float:
        """How long to wait before a run is looked at again that could not be reconciled so often; jittered."""
        return _jittered(tries, self.longest_retry_backoff_s)


def _jittered(tries: int, longest_s: float) -> float:
    return float(min(longest_s, 2.0 ** min(tries, 32)) * random.uniform(0.5, 1.0))
