"""Whether a silent attempt still writes: its first pod's output, looked at once no step was reported for a while."""

from __future__ import annotations

from controlplane.clusters.base import Cluster, ObservedJob


class Listener:
    """Where each attempt's output ended at the last look, and when. Forgetting it costs a false sign of life."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._ends: dict[str, tuple[int, float]] = {}

    def heard_at(self, name: str) -> float:
        """When the attempt of that object was last heard; 0 where nobody listened."""
        return self._ends.get(name, (0, 0.0))[1]

    def listen(self, name: str, job: ObservedJob | None, now: float) -> float:
        """Look for new output; when the attempt was last heard. Raises ClusterError."""
        pod = next((pod.name for pod in job.pods if pod.rank == 0), None) if job is not None else None
        end, heard = self._ends.get(name, (0, 0.0))
        if pod is not None and (there := self._cluster.log_extent(name, pod).end) > end:
            end, heard = there, now
        self._ends[name] = (end, heard)
        return heard

    def keep(self, names: set[str]) -> None:
        """Forget every attempt but these."""
        self._ends = {name: end for name, end in self._ends.items() if name in names}
