"""Further clusters of an installation: what its own file says of each. What a run names as `compute.cluster`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, HttpUrl, StringConstraints, ValidationError, model_validator

from controlplane.domain.errors import InvalidSpec
from controlplane.domain.fields import Namespace, Section, Text
from controlplane.domain.spec import problems_of


class FurtherCluster(Section):
    """A Kubernetes cluster beside the installation's own, and what holds for runs there.

    `kubeconfig` and `context` lead to it as --kubeconfig does; the first of `namespaces` is that of runs which name
    none; `storage` and `public_url` are --storage and --public-url as its pods see them.
    """

    name: Namespace
    kubeconfig: Annotated[str, StringConstraints(pattern=r"^/")] | None = None
    context: Text | None = None
    namespaces: list[Namespace] = Field(default_factory=list)
    storage: str = ""
    public_url: HttpUrl | None = None
    gpu_quotas: dict[Namespace, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)


class _File(Section):
    clusters: list[FurtherCluster]

    @model_validator(mode="after")
    def _apart(self) -> Self:
        names = [each.name for each in self.clusters]
        if len({*names}) < len(names):
            raise ValueError("each cluster has a name of its own")
        return self


def parse_clusters(given: Mapping[str, Any]) -> list[FurtherCluster]:
    """The clusters that a JSON object describes. Raises InvalidSpec with a pointer to every bad field."""
    try:
        return _File.model_validate(given).clusters
    except ValidationError as error:
        raise InvalidSpec(problems_of(error)) from None
