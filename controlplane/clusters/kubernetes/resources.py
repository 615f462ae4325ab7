"""Where each kind of thing lives on the API server. It calls nothing."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.clusters.base import Kind


@dataclass(frozen=True)
class Resource:
    """A kind as the API server serves it."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api(self) -> str:
        """Its group's root."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    @property
    def api_version(self) -> str:
        """As manifests say it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, sub: str | None = None) -> str:
        """The URL's path of the collection, or of one object, or of one of its subresources."""
        middle = f"/namespaces/{namespace}" if namespace else ""
        return self.api + middle + "/" + "/".join(part for part in (self.plural, name, sub) if part)


PODS = Resource("", "v1", "pods", "Pod")
EVENTS = Resource("", "v1", "events", "Event")
NODES = Resource("", "v1", "nodes", "Node")
SERVICES = Resource("", "v1", "services", "Service")
CLAIMS = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
STORAGE_CLASSES = Resource("storage.k8s.io", "v1", "storageclasses", "StorageClass")
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
TOKEN_REVIEWS = Resource("authentication.k8s.io", "v1", "tokenreviews", "TokenReview")
ACCESS_REVIEWS = Resource("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview")
SUBJECT_REVIEWS = Resource("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview")
TRAINING_RUNTIMES = Resource("trainer.kubeflow.org", "v1alpha1", "trainingruntimes", "TrainingRuntime")

ATTEMPTS: dict[Kind, Resource] = {  # the best one first
    "PyTorchJob": Resource("kubeflow.org", "v1", "pytorchjobs", "PyTorchJob"),
    "TrainJob": Resource("trainer.kubeflow.org", "v1alpha1", "trainjobs", "TrainJob"),
    "Job": Resource("batch", "v1", "jobs", "Job"),
}
KNOWN = {
    (resource.api_version, resource.kind): resource for resource in (*ATTEMPTS.values(), SERVICES, TRAINING_RUNTIMES)
}
