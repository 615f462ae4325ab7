"""Whether a silent attempt still writes: its first pod's output, looked at once no step was reported for a while."""

from __future__ import annotations

from controlplane.clusters.base import Cluster
from controlplane.store.tables import Attempt


class Listener:
    """Where each attempt's output ended at the last look, and when. Forgetting it costs a false sign of life."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._ends: dict[str, tuple[int, float]] = {}

    def heard_at(self, attempt: Attempt) -> float:
        """When the attempt was last heard; 0 where nobody listened."""
        return self._ends.get(attempt.object_name, (0, 0.0))[1]

    def listen(self, attempt: Attempt, now: float) -> float:
        """Look for new output; when the attempt was last heard. Raises ClusterError."""
        pod = next((str(pod["name"]) for pod in attempt.pods if pod["rank"] == 0), None)
        end, heard = self._ends.get(attempt.object_name, (0, 0.0))
        if pod is not None and (there := self._cluster.log_extent(attempt.object_name, pod).end) > end:
            end, heard = there, now
        self._ends[attempt.object_name] = (end, heard)
        return heard

    def keep(self, names: set[str]) -> None:
        """Forget every attempt but these."""
        self._ends = {name: end for name, end in self._ends.items() if name in names}
