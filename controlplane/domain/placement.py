"""What a run may ask of a Kubernetes cluster beside CPUs, memory and GPUs: devices, nodes, images, queues, secrets.

The local cluster has none of it and refuses each by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from controlplane.domain.fields import (
    WORDS,
    BadField,
    Bytes,
    Image,
    LabelKey,
    LabelValue,
    Namespace,
    Resource,
    SecretKey,
    Section,
    Subdomain,
    Word,
)
from teragpt.config import ConfigError
from teragpt.plan.hardware import LINKS, NODE_LINKS, NUMBERS, Link, known, link, misdescribed, node_link

GPU_RESOURCE = "nvidia.com/gpu"
PRODUCT_LABELS = {"nvidia.com": "nvidia.com/gpu.product", "amd.com": "amd.com/gpu.product-name"}
TOLD = frozenset({"gpu_numbers", "link", "node_link"})  # what asks nothing of a cluster, and so holds on any
Kind = Literal["PyTorchJob", "TrainJob", "Job"]


RUNTIME = r"^((Cluster)?TrainingRuntime/)?[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
WORDS[RUNTIME] = "the name of a runtime, or ClusterTrainingRuntime/NAME, or TrainingRuntime/NAME"
RuntimeName = Annotated[str, Field(pattern=RUNTIME)]


class Rdma(Section):
    """Network devices for collectives, as a device plugin offers them."""

    resource: Resource = Field(description="The resource's name.", examples=["rdma/ib"])
    count: int = Field(default=1, ge=1, le=1024, description="How many for each node.", examples=[8])


class Toleration(Section):
    """A taint that does not keep the pods away."""

    key: LabelKey | None = Field(default=None, description="The taint's key; any unless given.", examples=["gpu"])
    operator: Literal["Equal", "Exists"] = Field(
        default="Equal",
        description="Whether the value must be equal, or the key alone must exist.",
        examples=["Exists"],
    )
    value: LabelValue | None = Field(default=None, description="The taint's value, with Equal.", examples=[None])
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="The taint's effect; any unless given.", examples=["NoSchedule"]
    )
    toleration_seconds: int | None = Field(
        default=None, ge=0, le=1 << 31, description="With NoExecute: seconds before eviction.", examples=[None]
    )

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.operator == "Exists" and self.value is not None:
            raise BadField("value", f"got {self.value!r}; allowed: no value with operator Exists")
        if self.operator == "Equal" and self.key is None:
            raise BadField("key", "got none; allowed: a key, or operator Exists for every taint")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            detail = f"got {self.toleration_seconds} with effect {self.effect}; allowed: with NoExecute alone"
            raise BadField("toleration_seconds", detail)
        return self


def _found(look: Callable[[Any], Link]) -> Callable[[Any], Any]:
    """Whether the planner knows such a link; it stays as it was given."""

    def known_link(given: Any) -> Any:
        try:
            look(given)
        except ConfigError as error:
            raise ValueError(error.problems[0].detail) from None
        return given

    return known_link


BetweenNodes = Annotated[str | float, BeforeValidator(_found(link))]
WithinNode = Annotated[str | float, BeforeValidator(_found(node_link))]


class Placement(Section):
    """What its pods ask of nodes, beside their share of them."""

    gpu: Word | None = Field(
        default=None, description="GPU type: the value of the nodes' product label.", examples=["NVIDIA-H100-80GB-HBM3"]
    )
    gpu_numbers: dict[str, float] = Field(
        default_factory=dict,
        description=f"What a GPU that the planner does not know can do, to be planned by: {', '.join(NUMBERS)}.",
        examples=[{"memory_gb": 48, "bf16_tflops": 181, "bandwidth_gbs": 864}],
    )
    link: BetweenNodes | None = Field(
        default=None,
        description=f"What links the nodes, to be planned by: {', '.join(LINKS)}, or GB/s each way for each GPU; what "
        "such GPUs are sold with unless given.",
        examples=["roce-400"],
    )
    node_link: WithinNode | None = Field(
        default=None,
        description=f"The same of the GPUs of a node: {', '.join(NODE_LINKS)}, or GB/s each way for each GPU.",
        examples=[450],
    )
    gpu_resource: Resource = Field(
        default=GPU_RESOURCE,
        description="Resource that a GPU is: nvidia.com/gpu, amd.com/gpu, a MIG slice such as nvidia.com/mig-1g.10gb.",
        examples=["amd.com/gpu"],
    )
    shm: Bytes | None = Field(
        default=None,
        description="Size of /dev/shm in each pod, of its memory; half of that unless given.",
        examples=["64Gi"],
    )
    rdma: Rdma | None = Field(
        default=None, description="Network devices of each node.", examples=[{"resource": "rdma/ib", "count": 8}]
    )
    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=64)] = Field(
        default_factory=dict,
        description="Labels that the nodes must have.",
        examples=[{"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}],
    )
    tolerations: Annotated[list[Toleration], Field(max_length=64)] = Field(
        default_factory=list,
        description="Taints that do not keep the pods away.",
        examples=[[{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]],
    )
    image: Image | None = Field(
        default=None,
        description="Image of the pods; the installation's trainer image unless given.",
        examples=["registry.example/teragpt/trainer:1"],
    )
    image_pull_secrets: Annotated[list[Subdomain], Field(max_length=16)] = Field(
        default_factory=list, description="Secrets that hold a registry's credentials.", examples=[["registry"]]
    )

    @model_validator(mode="after")
    def _sound(self) -> Self:
        domain = self.gpu_resource.partition("/")[0]
        if self.gpu is not None and domain not in PRODUCT_LABELS:
            labelled = " and ".join(PRODUCT_LABELS)
            detail = f"got {self.gpu!r}; allowed: with a gpu_resource of {labelled}, else use node_selector"
            raise BadField("gpu", detail)
        wrong = misdescribed(self.gpu_numbers, required=known(self.gpu) is None) if self.gpu_numbers else ()
        for problem in wrong:
            raise BadField("gpu_numbers", str(problem))
        return self


class Scheduling(Section):
    """Who goes first, and who may be moved."""

    queue: Word | None = Field(
        default=None,
        description="Kueue's local queue that admits it; the installation's, if it has one, unless given.",
        examples=["research"],
    )
    priority: Subdomain | None = Field(
        default=None,
        description="With a queue, Kueue's workload priority class; without one, the pods' priority class. On "
        "the local cluster low, normal or high: the higher goes first, and lower ones stop for it with a checkpoint.",
        examples=["high"],
    )
    preemptible: bool = Field(
        default=False,
        description="Whether an autoscaler may move its pods: the run then goes on from its last checkpoint.",
        examples=[True],
    )


class Kubernetes(Section):
    """What kind of object each attempt is, and where it lives."""

    namespace: Namespace | None = Field(
        default=None,
        description="Namespace of its objects, one of the installation's; the first of them unless given.",
        examples=["team-a"],
    )

    kind: Literal["auto", "PyTorchJob", "TrainJob", "Job"] = Field(
        default="auto",
        description="Kind of the object; auto takes the best one that the cluster has.",
        examples=["PyTorchJob"],
    )
    runtime: RuntimeName | None = Field(
        default=None,
        description="With TrainJob: a ClusterTrainingRuntime of your own, or TrainingRuntime/NAME; ours unless given.",
        examples=["torch-distributed"],
    )

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.runtime is not None and self.kind not in {"auto", "TrainJob"}:
            raise BadField("runtime", f"got {self.runtime!r} with kind {self.kind}; allowed: with kind TrainJob alone")
        return self


class SecretRef(Section):
    """One key of a Secret in the run's namespace."""

    name: Subdomain = Field(description="The Secret's name.", examples=["hf"])
    key: SecretKey = Field(description="The key in it.", examples=["token"])


def given(section: Section) -> Iterator[tuple[str, object]]:
    """Name and value of each field of this file's that is given and asks something of a cluster, by section."""
    for model in (Placement, Scheduling, Kubernetes):
        if isinstance(section, model):
            defaults = model()
            names = (name for name in model.model_fields if getattr(section, name) != getattr(defaults, name))
            yield from ((name, getattr(section, name)) for name in names if name not in TOLD)
