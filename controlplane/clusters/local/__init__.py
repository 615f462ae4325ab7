"""The local cluster: executes the rendered manifests on this machine, one shim process per pod."""

from controlplane.clusters.local.cluster import LocalCluster
from controlplane.clusters.local.machine import Machine

__all__ = ["LocalCluster", "Machine"]
