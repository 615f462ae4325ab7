"""A Kubernetes cluster behind `controlplane.clusters.base.Cluster`. Import it late: its client takes 10 MB."""

from controlplane.clusters.kubernetes.cluster import KubernetesCluster
from controlplane.clusters.kubernetes.namespaces import Namespaces

__all__ = ["KubernetesCluster", "Namespaces"]
