"""How long a scheduler of ours takes to decide who is begun next, for this process's measurements.

Kubernetes decides by itself; the local cluster is what measures here.
"""

from __future__ import annotations

from prometheus_client import Histogram

BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)  # seconds

DECISIONS = Histogram(
    "teragpt_scheduling_seconds",
    "Seconds to decide who of those that wait is next.",
    buckets=BOUNDS,
    registry=None,  # those of this process that show it take it in
)
