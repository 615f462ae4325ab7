"""The volumes that a pod of ours may have, as types: none of them is the node's own file system."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from controlplane.domain.fields import Quantity, SecretKey, Subdomain
from controlplane.render.models import Label, OptionalRef, Path, Shape

Mode = Annotated[int, Field(ge=0, le=0o777)]


class VolumeMount(Shape):
    """Where a volume stands in a container."""

    name: Label
    mount_path: Path
    sub_path: str | None = None
    read_only: bool | None = None


class EmptyDir(Shape):
    """A folder that goes with the pod; in memory, it counts against the pod's limit."""

    medium: Literal["Memory"] | None = None
    size_limit: Quantity | None = None


class Claim(Shape):
    """A persistent volume claim."""

    claim_name: Subdomain
    read_only: bool | None = None


class Item(Shape):
    """A key as a file."""

    key: SecretKey
    path: Annotated[str, StringConstraints(min_length=1)]
    mode: Mode | None = None


class ConfigMap(OptionalRef):
    """A ConfigMap's keys as files."""

    items: list[Item] | None = None
    default_mode: Mode | None = None


class SecretFiles(Shape):
    """A Secret's keys as files."""

    secret_name: Subdomain
    items: list[Item] | None = None
    default_mode: Mode | None = None
    optional: bool | None = None


class AccountToken(Shape):
    """A token of the pod's service account that is good for one audience alone; the kubelet keeps it fresh."""

    path: Annotated[str, StringConstraints(min_length=1)]
    audience: Annotated[str, StringConstraints(min_length=1)]
    expiration_seconds: Annotated[int, Field(ge=600)] = 3600


class Source(Shape):
    """One part of a projected volume."""

    service_account_token: AccountToken | None = None
    secret: ConfigMap | None = None
    config_map: ConfigMap | None = None


class Projected(Shape):
    """Several sources in one folder."""

    sources: list[Source]
    default_mode: Mode | None = None


class Csi(Shape):
    """An inline volume of a CSI driver, such as the secrets store's."""

    driver: Subdomain
    read_only: bool | None = None
    volume_attributes: dict[str, str] | None = None


class Volume(Shape):
    """A volume of one kind; none of them is the node's own file system."""

    name: Label
    empty_dir: EmptyDir | None = None
    persistent_volume_claim: Claim | None = None
    projected: Projected | None = None
    config_map: ConfigMap | None = None
    secret: SecretFiles | None = None
    csi: Csi | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = self.model_fields_set - {"name"}
        if sum(getattr(self, kind) is not None for kind in kinds) != 1:
            raise ValueError("exactly one kind of volume")
        return self
