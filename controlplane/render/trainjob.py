"""An attempt as `trainer.kubeflow.org/v1alpha1 TrainJob`, for the Kubeflow Trainer.

A TrainJob refers to a runtime, which holds the pod template, and says what differs from it: image, command, variables
and resources in `trainer`, the rest of the pod in `runtimePatches`. Our runtime holds what no patch can say. Field
rules: trainer v2.3.0, `pkg/apis/trainer/v1alpha1` and `pkg/runtime/framework/plugins/{torch,jobset}`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from controlplane.domain.fields import LabelKey, LabelValue, Subdomain
from controlplane.domain.names import fingerprint
from controlplane.render import models, pod
from controlplane.render.attempt import Attempt
from controlplane.render.models import Labelled, Metadata, Replicas, Shape
from controlplane.render.template import metadata_of, pod_template
from controlplane.render.volumes import Volume, VolumeMount

CONTAINER = "node"  # the Trainer knows job and container by this name
MANAGER = "teragpt.io/control-plane"
GRACE_S = 120  # of our runtime's pods
RUNTIME = "teragpt"
PRIORITY = "teragpt.io/priority-class"  # annotation of a TrainJob: the one thing in which our runtimes differ
IMAGE = "teragpt/trainer:latest"  # of our runtime; every TrainJob says its own
LONGEST_POD_NAME = 63


class RuntimeRef(Shape):
    """The runtime, by name."""

    api_group: Literal["trainer.kubeflow.org"] = "trainer.kubeflow.org"
    kind: Literal["TrainingRuntime", "ClusterTrainingRuntime"]
    name: Subdomain


class Trainer(Shape):
    """The training container. The Trainer refuses PET_ variables of a user's and sets them itself."""

    image: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    command: Annotated[list[str], Field(min_length=1, max_length=128)]
    args: list[str] | None = None
    env: Annotated[list[pod.EnvVar], Field(max_length=128)]
    num_nodes: Replicas
    num_proc_per_node: Annotated[int, Field(ge=1)]  # never left out: it would be one for each CPU
    resources_per_node: pod.Resources | None = None


class ContainerPatch(Shape):
    """What may differ in a container."""

    name: str
    volume_mounts: list[VolumeMount] = Field(default_factory=list[VolumeMount])
    security_context: pod.ContainerSecurity


class PodPatch(Shape):
    """What may differ in a pod."""

    volumes: list[Volume] = Field(default_factory=list[Volume])
    containers: list[ContainerPatch]
    image_pull_secrets: list[models.Named] | None = None
    security_context: pod.PodSecurity
    node_selector: dict[LabelKey, LabelValue] | None = None
    affinity: pod.Affinity | None = None
    tolerations: list[pod.Toleration] | None = None
    termination_grace_period_seconds: int | None = None


class PodTemplatePatch(Shape):
    """Labels, annotations, spec."""

    metadata: Labelled
    spec: PodPatch


class JobSpecPatch(Shape):
    """A pod's template."""

    template: PodTemplatePatch


class JobPatch(Shape):
    """A job's spec."""

    spec: JobSpecPatch


class ReplicatedJobPatch(Shape):
    """The job that trains."""

    name: Literal["node"] = "node"
    template: JobPatch


class JobSetSpecPatch(Shape):
    """Its jobs."""

    replicated_jobs: list[ReplicatedJobPatch]


class JobSetPatch(Shape):
    """The JobSet."""

    spec: JobSetSpecPatch


class RuntimeSpecPatch(Shape):
    """The runtime."""

    template: JobSetPatch


class RuntimePatch(Shape):
    """Our patch, beside those of others such as Kueue."""

    manager: Literal["teragpt.io/control-plane"] = "teragpt.io/control-plane"
    training_runtime_spec: RuntimeSpecPatch


class TrainJobSpec(Shape):
    """No suspend (Kueue's alone), no deadline (the control plane's)."""

    runtime_ref: RuntimeRef
    trainer: Trainer
    runtime_patches: Annotated[list[RuntimePatch], Field(min_length=1, max_length=1)]


class TrainJob(Shape):
    """One attempt as the Trainer's object."""

    api_version: Literal["trainer.kubeflow.org/v1alpha1"]
    kind: Literal["TrainJob"]
    metadata: Metadata
    spec: TrainJobSpec

    @model_validator(mode="after")
    def _named(self) -> Self:
        if len(f"{self.metadata.name}-node-0-{self.spec.trainer.num_nodes - 1}-abcde") > LONGEST_POD_NAME:
            raise ValueError(f"name: a pod's, after it, must stay within {LONGEST_POD_NAME} characters")
        return self

    @property
    def patch(self) -> PodTemplatePatch:
        """What differs in the pods."""
        return (
            self.spec.runtime_patches[0].training_runtime_spec.template.spec.replicated_jobs[0].template.spec.template
        )


def trainjob(attempt: Attempt) -> TrainJob:
    """The attempt's object. Raises ValueError (pydantic's names the field) for what Kubernetes would not take."""
    template = pod_template(attempt, CONTAINER)
    container = template.spec.containers[0]
    metadata = metadata_of(attempt)
    if priority := template.spec.priority_class_name:
        metadata = metadata.model_copy(update={"annotations": {**metadata.annotations, PRIORITY: priority}})
    return TrainJob(
        api_version="trainer.kubeflow.org/v1alpha1",
        kind="TrainJob",
        metadata=metadata,
        spec=TrainJobSpec(
            runtime_ref=_reference(attempt.runtime, template.spec.priority_class_name),
            trainer=Trainer(
                image=container.image,
                command=container.command or [],
                args=container.args,
                env=container.env,
                num_nodes=attempt.nodes,
                num_proc_per_node=attempt.processes_per_node,
                resources_per_node=container.resources,
            ),
            runtime_patches=[_patch(template, attempt)],
        ),
    )


def _reference(given: str | None, priority: str | None) -> RuntimeRef:
    if given is None:
        return RuntimeRef(kind="TrainingRuntime", name=runtime_name(priority))
    kind, _, name = given.rpartition("/")
    return RuntimeRef(kind="TrainingRuntime" if kind == "TrainingRuntime" else "ClusterTrainingRuntime", name=name)


def _patch(template: pod.PodTemplate, attempt: Attempt) -> RuntimePatch:
    """The pod's difference from the runtime. Raises ValueError for what no patch can say."""
    spec, container = template.spec, template.spec.containers[0]
    if lost := sorted(_unsayable(template, attempt)):
        raise ValueError(f"{', '.join(lost)}: a TrainJob cannot say this; use the kind PyTorchJob or Job")
    patch = PodPatch(
        volumes=spec.volumes,
        containers=[
            ContainerPatch(
                name=CONTAINER, volume_mounts=container.volume_mounts, security_context=container.security_context
            )
        ],
        image_pull_secrets=spec.image_pull_secrets,
        security_context=spec.security_context,
        node_selector=spec.node_selector,
        affinity=spec.affinity,
        tolerations=spec.tolerations,
        termination_grace_period_seconds=(
            None if spec.termination_grace_period_seconds == GRACE_S else spec.termination_grace_period_seconds
        ),
    )
    job = JobPatch(spec=JobSpecPatch(template=PodTemplatePatch(metadata=template.metadata, spec=patch)))
    jobs = JobSetSpecPatch(replicated_jobs=[ReplicatedJobPatch(template=job)])
    return RuntimePatch(training_runtime_spec=RuntimeSpecPatch(template=JobSetPatch(spec=jobs)))


def _unsayable(template: pod.PodTemplate, attempt: Attempt) -> set[str]:
    """Fields of the pod that neither a patch nor our runtime holds."""
    spec, container = template.spec, template.spec.containers[0]
    said = {*PodPatch.model_fields, "automount_service_account_token", "enable_service_links", "priority_class_name"}
    fields = {name for name in pod.PodSpec.model_fields if getattr(spec, name) is not None} - said
    held = {*Trainer.model_fields, *ContainerPatch.model_fields, "resources"}
    plain = pod.Container(name=CONTAINER, image=IMAGE, ports=[pod.Port(name=pod.PORT_NAME)])
    fields |= {
        f"containers[0].{name}"
        for name in pod.Container.model_fields
        if name not in held and getattr(container, name) != getattr(plain, name)
    }
    if len(spec.containers) > 1:
        fields.add("containers[1]")
    if attempt.runtime is not None and spec.priority_class_name:
        fields.add("priority_class_name")
    if attempt.ttl_after_finish_s is not None:
        fields.add("limits.ttl_after_finish_s")
    return fields


class RuntimeMetadata(Labelled):
    """The runtime's name."""

    name: str
    namespace: models.Namespace | None = None


def runtime_name(priority: str | None) -> str:
    """Of our runtime: its content's hash is in it, so that two versions of us do not meet in one."""
    return f"{RUNTIME}-{fingerprint(_runtime_spec(priority))[:8]}"


def training_runtime(priority: str | None = None, namespace: str | None = None) -> dict[str, Any]:
    """Our TrainingRuntime, which a namespace needs once for all TrainJobs of a priority class."""
    metadata = RuntimeMetadata(
        name=runtime_name(priority), namespace=namespace, labels={models.MANAGED_BY: models.MANAGER}
    )
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": metadata.manifest(),
        "spec": _runtime_spec(priority),
    }


def _runtime_spec(priority: str | None) -> dict[str, Any]:
    """One job of one pod a node, restarted by nobody but the control plane."""
    spec = pod.PodSpec(
        restart_policy="Never",
        termination_grace_period_seconds=GRACE_S,
        priority_class_name=priority,
        containers=[pod.Container(name=CONTAINER, image=IMAGE)],
    )
    job = {
        "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
        "spec": {"backoffLimit": 0, "template": {"spec": spec.manifest()}},
    }
    return {
        "mlPolicy": {"numNodes": 1, "torch": {}},
        "template": {
            "spec": {
                "failurePolicy": {"maxRestarts": 0},
                "replicatedJobs": [{"name": CONTAINER, "replicas": 1, "template": job}],
            }
        },
    }
