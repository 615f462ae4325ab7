"""A Kubernetes cluster behind `controlplane.clusters.base.Cluster`. Import it late: its client takes 10 MB."""

from controlplane.clusters.kubernetes.cluster import KubernetesCluster

__all__ = ["KubernetesCluster"]
