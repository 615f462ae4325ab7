"""The part of `kubeflow.org/v1 PyTorchJob` that we render, as types: a field that is not here is never sent.

The CRD itself checks next to nothing (no enum on the policies, no bounds, unknown fields pruned in silence), so every
value it would misread is a type error here. Field rules: training operator v1.9.4, `pkg/apis/kubeflow.org/v1` and
`pkg/webhooks/pytorch/pytorchjob_webhook.go`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.alias_generators import to_camel, to_pascal

RUN_ID = "teragpt.io/run-id"
ATTEMPT = "teragpt.io/attempt"
SPEC_HASH = "teragpt.io/spec-hash"
MANAGED_BY = "app.kubernetes.io/managed-by"

GPU: Literal["nvidia.com/gpu"] = "nvidia.com/gpu"
Kind = Literal["cpu", "memory", "nvidia.com/gpu"]

# DNS-1035, short enough for the operator's pods and services, which add "-worker-NNNN" and end at 63 characters.
ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=51)]
LabelKey = Annotated[
    str,
    StringConstraints(
        pattern=r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
    ),
]
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$")]
Whole = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]*$")]  # never "auto": it counts as 1 in WORLD_SIZE
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Shape(BaseModel):
    """Kubernetes' spelling (camelCase), no unknown field, no coercion."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="forbid",
        strict=True,
        frozen=True,
    )


class SecretKeyRef(Shape):
    """One key of the Secret `name`."""

    name: ObjectName
    key: str


class EnvSource(Shape):
    """Where a variable's value comes from when it must not be read in the manifest."""

    secret_key_ref: SecretKeyRef


class EnvVar(Shape):
    """A variable with its value, or with the secret that holds it."""

    name: VariableName
    value: str | None = None
    value_from: EnvSource | None = None

    @model_validator(mode="after")
    def _one_value(self) -> Self:
        if (self.value is None) == (self.value_from is None):
            raise ValueError("exactly one of value and valueFrom")
        return self


class Port(Shape):
    """The rendezvous port: the operator reads MASTER_PORT from the one of this name."""

    name: Literal["pytorchjob-port"] = "pytorchjob-port"
    container_port: Annotated[int, Field(ge=1, le=65535)] = 23456


class Resources(Shape):
    """Limits; Kubernetes takes them as the requests too, which makes the pod's share guaranteed."""

    limits: dict[Kind, Quantity]


class VolumeMount(Shape):
    """The only mount we render: NCCL and data loaders need more shared memory than a container's 64 MB."""

    name: Literal["dshm"] = "dshm"
    mount_path: Literal["/dev/shm"] = "/dev/shm"  # noqa: S108 - the path is the point


class EmptyDir(Shape):
    """Memory that counts against the pod's memory limit."""

    medium: Literal["Memory"] = "Memory"


class Volume(Shape):
    """The shared memory's volume."""

    name: Literal["dshm"] = "dshm"
    empty_dir: EmptyDir = EmptyDir()


class Capabilities(Shape):
    """No capability at all."""

    drop: list[Literal["ALL"]] = ["ALL"]


class ContainerSecurity(Shape):
    """What Pod Security `restricted` asks of a container."""

    allow_privilege_escalation: Literal[False] = False
    capabilities: Capabilities = Capabilities()


class SeccompProfile(Shape):
    """The runtime's own filter."""

    type: Literal["RuntimeDefault"] = "RuntimeDefault"


class PodSecurity(Shape):
    """What Pod Security `restricted` asks of a pod."""

    run_as_non_root: Literal[True] = True
    seccomp_profile: SeccompProfile = SeccompProfile()


class Container(Shape):
    """The training container; the operator knows it by its name alone."""

    name: Literal["pytorch"] = "pytorch"
    image: Annotated[str, StringConstraints(min_length=1)]
    command: Annotated[list[str], Field(min_length=1)]
    args: list[str] | None = None
    env: list[EnvVar] = []
    ports: Annotated[list[Port], Field(max_length=1)] = [Port()]
    resources: Resources | None = None
    security_context: ContainerSecurity = ContainerSecurity()
    termination_message_path: str = "/dev/termination-log"
    termination_message_policy: Literal["FallbackToLogsOnError"] = "FallbackToLogsOnError"
    volume_mounts: Annotated[list[VolumeMount], Field(max_length=1)] = [VolumeMount()]


class PodSpec(Shape):
    """One container, nothing of the cluster's credentials, time to write a checkpoint."""

    automount_service_account_token: Literal[False] = False
    enable_service_links: Literal[False] = False  # else one block of variables per Service of the namespace
    termination_grace_period_seconds: Annotated[int, Field(ge=0, le=86400)]
    security_context: PodSecurity = PodSecurity()
    containers: Annotated[list[Container], Field(min_length=1, max_length=1)]
    volumes: Annotated[list[Volume], Field(max_length=1)] = [Volume()]


class PodMetadata(Shape):
    """What every pod carries."""

    labels: dict[LabelKey, LabelValue] = {}
    annotations: dict[LabelKey, str] = {}


class PodTemplate(Shape):
    """A pod of a replica set."""

    metadata: PodMetadata = PodMetadata()
    spec: PodSpec


class Role(Shape):
    """Pods of one role. Restarts are the control plane's, so that all ranks restart together."""

    restart_policy: Literal["Never"]
    template: PodTemplate


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


class JobSpec(Shape):
    """The job."""

    nproc_per_node: Whole
    run_policy: RunPolicy
    pytorch_replica_specs: ReplicaSpecs


class Metadata(Shape):
    """The object's name and whose it is."""

    name: ObjectName
    labels: dict[LabelKey, LabelValue]
    annotations: dict[LabelKey, str]

    @model_validator(mode="after")
    def _ours(self) -> Self:
        missing = [key for key in (RUN_ID, ATTEMPT) if key not in self.labels]
        missing += [] if SPEC_HASH in self.annotations else [SPEC_HASH]
        if missing:
            raise ValueError(f"needs the labels {RUN_ID} and {ATTEMPT} and the annotation {SPEC_HASH}")
        if not self.labels[ATTEMPT].isdecimal():
            raise ValueError(f"the label {ATTEMPT} must be a whole number")
        return self


class PyTorchJob(Shape):
    """One attempt as the training operator's object.

    What the operator would default otherwise than we mean is required wherever it stands.
    """

    api_version: Literal["kubeflow.org/v1"]
    kind: Literal["PyTorchJob"]
    metadata: Metadata
    spec: JobSpec

    def manifest(self) -> dict[str, Any]:
        """The object as JSON."""
        return self.model_dump(by_alias=True, exclude_none=True)


class Identity(NamedTuple):
    """What makes two objects of one name the same object."""

    run_id: str
    attempt: int
    spec_hash: str


def identity_of(manifest: Mapping[str, Any]) -> Identity:
    """Whose attempt an object of ours is."""
    metadata = manifest["metadata"]
    labels, annotations = metadata["labels"], metadata["annotations"]
    return Identity(labels[RUN_ID], int(labels[ATTEMPT]), annotations[SPEC_HASH])
