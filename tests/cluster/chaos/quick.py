"""The control plane with its clocks run faster, so that a round takes seconds: `python -m tests.cluster.chaos.quick`.

Only waits are shorter, those of the product's own constants. The file that TERAGPT_CHAOS_CLOCK names holds by how many
seconds its wall clock is wrong, whenever it is read; nothing is done otherwise.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path


def wrong(clock: Callable[[], float], file: Path) -> Callable[[], float]:
    """A clock that is ahead by what the file says."""

    def read() -> float:
        try:
            return clock() + float(file.read_text())
        except FileNotFoundError:
            return clock()

    return read


def hurry() -> None:
    """Shorten the product's waits."""
    from controlplane.clusters.kubernetes import cluster, informer, logs
    from controlplane.reconcile import reconciler
    from controlplane.reconcile.pace import Pace

    quick = Pace(tick_s=0.2, idle_s=1.0, first_backoff_s=0.2, longest_backoff_s=1.0, longest_submit_backoff_s=2.0)
    setattr(reconciler, "Pace", lambda: quick)  # noqa: B010 - the name that a reconciler without a pace of its own takes
    informer.BACKOFF_S = (0.1, 1.0)
    informer.LOST_S = 3.0
    logs.TROUBLE_S = 0.3
    logs.AGAIN_S = 0.2
    cluster.KEEP_S = 0.2
    cluster.LOOK_SOON_S = 1.0
    cluster.LOGS_AT_MOST_S = 5.0


if __name__ == "__main__":
    time.time = wrong(time.time, Path(os.environ["TERAGPT_CHAOS_CLOCK"]))  # before anything takes it as a default
    hurry()
    from controlplane import server

    sys.exit(server.main())
