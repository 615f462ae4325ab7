"""What every object of ours says of itself, and what its types have in common: what has no type is never sent.

The CRDs check next to nothing (no enum on the policies, no bounds, unknown fields pruned in silence), so every value
that an operator would misread is a type error here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.alias_generators import to_camel

from controlplane.domain.fields import LabelKey, LabelValue, Subdomain

RUN_ID = "teragpt.io/run-id"
ATTEMPT = "teragpt.io/attempt"
SPEC_HASH = "teragpt.io/spec-hash"
MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "teragpt"
QUEUE = "kueue.x-k8s.io/queue-name"
QUEUE_PRIORITY = "kueue.x-k8s.io/priority-class"

# DNS-1035, short enough for the operator's pods and services, which add "-worker-NNNN" and end at 63 characters.
ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=51)]
Namespace = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
Whole = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]*$")]  # never "auto": it counts as 1 in WORLD_SIZE
Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]  # DNS-1123
Path = Annotated[str, StringConstraints(pattern=r"^/[^:\x00]{0,1023}$")]
Seconds = Annotated[int, Field(ge=0, le=1 << 31)]
Replicas = Annotated[int, Field(ge=1, le=10_000)]


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

    def manifest(self) -> dict[str, Any]:
        """As JSON, in Kubernetes' spelling."""
        return self.model_dump(by_alias=True, exclude_none=True)


class Named(Shape):
    """A reference by name."""

    name: Subdomain


class OptionalRef(Named):
    """A reference to what may be absent."""

    optional: bool | None = None


class Labelled(Shape):
    """What every pod carries."""

    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict[LabelKey, LabelValue])
    annotations: dict[LabelKey, str] = Field(default_factory=dict[LabelKey, str])


class Metadata(Shape):
    """The object's name and whose it is."""

    name: ObjectName
    namespace: Namespace | None = None
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
