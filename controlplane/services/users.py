"""Users whom the cluster knows: let in by their rights there, so that nobody's rights are kept twice."""

from __future__ import annotations

from controlplane.clusters.base import ClusterError
from controlplane.domain.errors import ClusterSilent
from controlplane.services.context import Context


def admitted(context: Context, token: str, verb: str) -> str | None:
    """The user who shows this token, where the cluster lets them do that with jobs. Raises ClusterSilent."""
    try:
        return context.cluster.admit(token, verb)
    except ClusterError as error:
        raise ClusterSilent(str(error)) from None
