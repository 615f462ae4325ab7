"""An attempt as `batch/v1 Job`, for a cluster without a training operator: what it would tell the pods, we do.

The Job is Indexed, so that pod i is called `<job>-<i>` and finds pod 0 as `<job>-0.teragpt`: through one headless
Service for all runs of a namespace, which publishes pods before they are ready.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from controlplane.domain.fields import LabelKey, LabelValue
from controlplane.render import models, pod
from controlplane.render.attempt import Attempt
from controlplane.render.models import Labelled, Metadata, Replicas, Seconds, Shape
from controlplane.render.template import metadata_of, pod_template

CONTAINER = "pytorch"
SERVICE = "teragpt"
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
LONGEST_HOST_NAME = 63


class JobSpec(Shape):
    """One completion an index; no restart but the control plane's, so that all ranks restart together."""

    completion_mode: Literal["Indexed"]
    completions: Replicas
    parallelism: Replicas
    backoff_limit: Literal[0]
    ttl_seconds_after_finished: Seconds | None = None
    template: pod.PodTemplate

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.parallelism != self.completions:
            raise ValueError("parallelism must equal completions: ranks start together")
        if self.template.spec.restart_policy != "Never" or self.template.spec.subdomain != SERVICE:
            raise ValueError(f"pods need restartPolicy Never and subdomain {SERVICE}")
        return self


class Job(Shape):
    """One attempt as Kubernetes' own object."""

    api_version: Literal["batch/v1"]
    kind: Literal["Job"]
    metadata: Metadata
    spec: JobSpec

    @model_validator(mode="after")
    def _named(self) -> Self:
        if len(f"{self.metadata.name}-{self.spec.completions - 1}") > LONGEST_HOST_NAME:
            raise ValueError(f"name: with the index it must stay within {LONGEST_HOST_NAME} characters")
        return self


def job(attempt: Attempt) -> Job:
    """The attempt's object. Raises ValueError (pydantic's names the field) for what Kubernetes would not take."""
    template = pod_template(attempt, CONTAINER, list(_rendezvous(attempt)))
    spec = template.spec.model_copy(update={"restart_policy": "Never", "subdomain": SERVICE})
    return Job(
        api_version="batch/v1",
        kind="Job",
        metadata=metadata_of(attempt),
        spec=JobSpec(
            completion_mode="Indexed",
            completions=attempt.nodes,
            parallelism=attempt.nodes,
            backoff_limit=0,
            ttl_seconds_after_finished=attempt.ttl_after_finish_s,
            template=template.model_copy(update={"spec": spec}),
        ),
    )


def _rendezvous(attempt: Attempt) -> Iterator[pod.EnvVar]:
    """What the training operator would add: see `controlplane.render.environment`."""
    address, port = f"{attempt.name}-0.{SERVICE}", str(pod.PORT)
    values = {
        "PYTHONUNBUFFERED": "1",
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        "WORLD_SIZE": str(attempt.nodes * attempt.processes_per_node),
        "PET_MASTER_ADDR": address,
        "PET_MASTER_PORT": port,
        "PET_NPROC_PER_NODE": str(attempt.processes_per_node),
        "PET_NNODES": str(attempt.nodes),
    }
    yield from (pod.EnvVar(name=name, value=value) for name, value in values.items())
    index = pod.EnvSource(field_ref=pod.FieldRef(field_path=INDEX))
    yield from (pod.EnvVar(name=name, value_from=index) for name in ("RANK", "PET_NODE_RANK"))


class ServiceMetadata(Labelled):
    """The Service's name."""

    name: str
    namespace: models.Namespace | None = None


class ServicePort(Shape):
    """The rendezvous port."""

    name: str
    port: pod.PortNumber


class ServiceSpec(Shape):
    """Names for pods, no address of its own."""

    cluster_ip: Literal["None"] = Field(default="None", alias="clusterIP")
    publish_not_ready_addresses: Literal[True] = True  # the others must find pod 0 while it still starts
    selector: dict[LabelKey, LabelValue]
    ports: list[ServicePort]


class Service(Shape):
    """The Service that gives every Job's pods their names."""

    api_version: Literal["v1"] = "v1"
    kind: Literal["Service"] = "Service"
    metadata: ServiceMetadata
    spec: ServiceSpec


def headless_service(namespace: str | None = None) -> dict[str, Any]:
    """The one Service that a namespace needs for all its Jobs; the same at every call."""
    ours = {models.MANAGED_BY: models.MANAGER}
    return Service(
        metadata=ServiceMetadata(name=SERVICE, namespace=namespace, labels=ours),
        spec=ServiceSpec(selector=ours, ports=[ServicePort(name=pod.PORT_NAME, port=pod.PORT)]),
    ).manifest()
