"""An attempt as `kubeflow.org/v1 PyTorchJob`, for the training operator.

Field rules: training operator v1.9.4, `pkg/apis/kubeflow.org/v1` and `pkg/webhooks/pytorch/pytorchjob_webhook.go`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.alias_generators import to_pascal

from controlplane.render.attempt import Attempt
from controlplane.render.models import Metadata, Seconds, Shape, Whole
from controlplane.render.pod import PORT_NAME, PodTemplate
from controlplane.render.template import metadata_of, pod_template

CONTAINER = "pytorch"  # the operator knows it by its name alone


class Role(Shape):
    """Pods of one role. Restarts are the control plane's, so that all ranks restart together."""

    restart_policy: Literal["Never"]
    template: PodTemplate

    @model_validator(mode="after")
    def _known(self) -> Self:
        first = self.template.spec.containers[0]
        if first.name != CONTAINER or first.command is None:
            raise ValueError(f"the first container must be {CONTAINER}, with a command")
        if [port.name for port in first.ports or []].count(PORT_NAME) != 1:
            raise ValueError(f"the container {CONTAINER} needs one port called {PORT_NAME}")
        return self


class Master(Role):
    """The pod that hosts the rendezvous. The webhook demands that its number be written."""

    replicas: Literal[1]


class Worker(Role):
    """The other pods."""

    replicas: Annotated[int, Field(ge=1, le=9999)]


class ReplicaSpecs(Shape):
    """`Worker` is left out on one node: the webhook refuses 0."""

    model_config = ConfigDict(alias_generator=to_pascal)

    master: Master
    worker: Worker | None = None


class RunPolicy(Shape):
    """`Running` ends the workers when the master has finished and keeps finished pods, whose logs are read.

    No suspend (Kueue's alone), no backoffLimit and no deadline (the operator's own do not hold).
    """

    clean_pod_policy: Literal["Running"]
    ttl_seconds_after_finished: Seconds | None = None


class JobSpec(Shape):
    """The job."""

    nproc_per_node: Whole
    run_policy: RunPolicy
    pytorch_replica_specs: ReplicaSpecs


class PyTorchJob(Shape):
    """One attempt as the training operator's object.

    What the operator would default otherwise than we mean is required wherever it stands.
    """

    api_version: Literal["kubeflow.org/v1"]
    kind: Literal["PyTorchJob"]
    metadata: Metadata
    spec: JobSpec


def pytorchjob(attempt: Attempt) -> PyTorchJob:
    """The attempt's object. Raises ValueError (pydantic's names the field) for what Kubernetes would not take."""
    template = pod_template(attempt, CONTAINER)
    master = Master(replicas=1, restart_policy="Never", template=template)
    workers = attempt.nodes - 1
    worker = Worker(replicas=workers, restart_policy="Never", template=template) if workers else None
    return PyTorchJob(
        api_version="kubeflow.org/v1",
        kind="PyTorchJob",
        metadata=metadata_of(attempt),
        spec=JobSpec(
            nproc_per_node=str(attempt.processes_per_node),
            run_policy=RunPolicy(clean_pod_policy="Running", ttl_seconds_after_finished=attempt.ttl_after_finish_s),
            pytorch_replica_specs=ReplicaSpecs(master=master, worker=worker),
        ),
    )
