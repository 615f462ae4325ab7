"""The part of a pod template that we render, or let a user's patch add, as types.

What would give a pod more rights than Pod Security `restricted` allows has no type here, nor has another service
account or the host's own namespaces, so that neither a mistake of ours nor a patch can ask for them.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from controlplane.domain.fields import Image, LabelKey, LabelValue, Quantity, SecretKey, Subdomain
from controlplane.render.models import Label, Labelled, Named, OptionalRef, Path, Seconds, Shape
from controlplane.render.volumes import Volume, VolumeMount

GPU = "nvidia.com/gpu"
PORT_NAME = "pytorchjob-port"  # the operator reads MASTER_PORT from the port of this name
PORT = 23456

VariableName = Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]{0,252}$")]
ResourceName = Annotated[
    str,
    StringConstraints(
        pattern=r"^(cpu|memory|ephemeral-storage|hugepages-[A-Za-z0-9]+"
        r"|[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)$"
    ),
]
UserId = Annotated[int, Field(ge=1, le=(1 << 31) - 1)]  # never root
PortNumber = Annotated[int, Field(ge=1, le=65535)]


class KeyRef(Shape):
    """One key of a Secret or a ConfigMap."""

    name: Subdomain
    key: SecretKey
    optional: bool | None = None


class FieldRef(Shape):
    """A field of the pod itself."""

    field_path: Annotated[str, StringConstraints(pattern=r"^(metadata|spec|status)\.[!-~]+$")]
    api_version: Literal["v1"] | None = None


class EnvSource(Shape):
    """Where a variable's value comes from when it must not be read in the manifest, or is the pod's own."""

    secret_key_ref: KeyRef | None = None
    config_map_key_ref: KeyRef | None = None
    field_ref: FieldRef | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(source is not None for source in (self.secret_key_ref, self.config_map_key_ref, self.field_ref)) != 1:
            raise ValueError("exactly one of secretKeyRef, configMapKeyRef and fieldRef")
        return self


class EnvVar(Shape):
    """A variable with its value, or with what holds it."""

    name: VariableName
    value: str | None = None
    value_from: EnvSource | None = None

    @model_validator(mode="after")
    def _one_value(self) -> Self:
        if (self.value is None) == (self.value_from is None):
            raise ValueError("exactly one of value and valueFrom")
        return self


class EnvFrom(Shape):
    """All keys of a Secret or a ConfigMap as variables."""

    prefix: str | None = None
    secret_ref: OptionalRef | None = None
    config_map_ref: OptionalRef | None = None


class Port(Shape):
    """A port that the container listens on; never one of the host's."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?$")] | None = None
    container_port: PortNumber = PORT
    protocol: Literal["TCP", "UDP", "SCTP"] | None = None


class Resources(Shape):
    """Limits, and what is requested: the same, unless there is no limit."""

    limits: dict[ResourceName, Quantity] = Field(default_factory=dict[ResourceName, Quantity])
    requests: dict[ResourceName, Quantity] | None = None


def _every() -> list[Literal["ALL"]]:
    return ["ALL"]


class Capabilities(Shape):
    """No capability at all."""

    drop: list[Literal["ALL"]] = Field(default_factory=_every, min_length=1)


class SeccompProfile(Shape):
    """The runtime's own filter."""

    type: Literal["RuntimeDefault"] = "RuntimeDefault"


class ContainerSecurity(Shape):
    """What Pod Security `restricted` asks of a container."""

    allow_privilege_escalation: Literal[False] = False
    privileged: Literal[False] | None = None
    capabilities: Capabilities = Capabilities()
    read_only_root_filesystem: bool | None = None
    run_as_non_root: Literal[True] | None = None
    run_as_user: UserId | None = None
    run_as_group: UserId | None = None
    seccomp_profile: SeccompProfile | None = None


class PodSecurity(Shape):
    """What Pod Security `restricted` asks of a pod."""

    run_as_non_root: Literal[True] = True
    run_as_user: UserId | None = None
    run_as_group: UserId | None = None
    fs_group: UserId | None = None
    fs_group_change_policy: Literal["OnRootMismatch", "Always"] | None = None
    supplemental_groups: list[UserId] | None = None
    seccomp_profile: SeccompProfile = SeccompProfile()


class Container(Shape):
    """A container."""

    name: Label
    image: Image
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    command: Annotated[list[str], Field(min_length=1)] | None = None
    args: list[str] | None = None
    working_dir: Path | None = None
    env: list[EnvVar] = Field(default_factory=list[EnvVar])
    env_from: list[EnvFrom] | None = None
    ports: Annotated[list[Port], Field(max_length=16)] | None = None
    resources: Resources | None = None
    security_context: ContainerSecurity = ContainerSecurity()
    restart_policy: Literal["Always"] | None = None  # of an init container: one that stays, beside the others
    termination_message_path: str = "/dev/termination-log"
    termination_message_policy: Literal["FallbackToLogsOnError"] = "FallbackToLogsOnError"
    volume_mounts: list[VolumeMount] = Field(default_factory=list[VolumeMount], max_length=64)


class Toleration(Shape):
    """A taint that does not keep the pod away."""

    key: LabelKey | None = None
    operator: Literal["Equal", "Exists"] | None = None
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: Seconds | None = None


class Expression(Shape):
    """What a label must be."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: list[LabelValue] | None = None


class NodeTerm(Shape):
    """Nodes that meet every expression."""

    match_expressions: list[Expression] | None = None
    match_fields: list[Expression] | None = None


class RequiredNodes(Shape):
    """Nodes that meet any of the terms."""

    node_selector_terms: Annotated[list[NodeTerm], Field(min_length=1)]


class PreferredNodes(Shape):
    """Nodes that are liked."""

    weight: Annotated[int, Field(ge=1, le=100)]
    preference: NodeTerm


class NodeAffinity(Shape):
    """Which nodes."""

    required_during_scheduling_ignored_during_execution: RequiredNodes | None = None
    preferred_during_scheduling_ignored_during_execution: list[PreferredNodes] | None = None


class Selector(Shape):
    """Pods by their labels."""

    match_labels: dict[LabelKey, LabelValue] | None = None
    match_expressions: list[Expression] | None = None


class PodTerm(Shape):
    """Near to, or away from, which pods; how near is the topology key's business."""

    label_selector: Selector
    topology_key: LabelKey
    match_label_keys: list[LabelKey] | None = None


class PreferredPods(Shape):
    """Pods that are liked near."""

    weight: Annotated[int, Field(ge=1, le=100)]
    pod_affinity_term: PodTerm


class PodAffinity(Shape):
    """Which neighbours."""

    required_during_scheduling_ignored_during_execution: list[PodTerm] | None = None
    preferred_during_scheduling_ignored_during_execution: list[PreferredPods] | None = None


class Affinity(Shape):
    """Which nodes and neighbours."""

    node_affinity: NodeAffinity | None = None
    pod_affinity: PodAffinity | None = None
    pod_anti_affinity: PodAffinity | None = None


class Spread(Shape):
    """How evenly pods lie over a topology."""

    max_skew: Annotated[int, Field(ge=1)]
    topology_key: LabelKey
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    label_selector: Selector | None = None


class HostAlias(Shape):
    """A line of /etc/hosts."""

    ip: str
    hostnames: list[str]


class DnsOption(Shape):
    """An option of the resolver."""

    name: str
    value: str | None = None


class DnsConfig(Shape):
    """The resolver's settings."""

    nameservers: list[str] | None = None
    searches: list[str] | None = None
    options: list[DnsOption] | None = None


class PodSpec(Shape):
    """The training container first, nothing of the cluster's credentials, time to write a checkpoint."""

    automount_service_account_token: Literal[False] = False
    enable_service_links: Literal[False] = False  # else one block of variables per Service of the namespace
    termination_grace_period_seconds: Annotated[int, Field(ge=0, le=86400)]
    restart_policy: Literal["Never"] | None = None
    subdomain: Label | None = None
    security_context: PodSecurity = PodSecurity()
    image_pull_secrets: list[Named] | None = None
    node_selector: dict[LabelKey, LabelValue] | None = None
    tolerations: list[Toleration] | None = None
    affinity: Affinity | None = None
    topology_spread_constraints: list[Spread] | None = None
    priority_class_name: Subdomain | None = None
    scheduler_name: Subdomain | None = None
    runtime_class_name: Subdomain | None = None
    host_aliases: list[HostAlias] | None = None
    dns_policy: Literal["ClusterFirst", "Default", "None"] | None = None
    dns_config: DnsConfig | None = None
    init_containers: Annotated[list[Container], Field(max_length=16)] | None = None
    containers: Annotated[list[Container], Field(min_length=1, max_length=16)]
    volumes: list[Volume] = Field(default_factory=list[Volume], max_length=64)


class PodTemplate(Shape):
    """A pod of a set."""

    metadata: Labelled = Labelled()
    spec: PodSpec
