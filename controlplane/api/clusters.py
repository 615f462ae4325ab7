"""Clusters: what executes the runs, what it has, and what it lacks."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter
from pydantic import Field

from controlplane.api.body import JsonRoute
from controlplane.api.plans import Capacity
from controlplane.api.views import Services, View
from controlplane.services import state

router = APIRouter(tags=["health"], route_class=JsonRoute)


class Check(View):
    """Something that runs need of the cluster."""

    name: str = Field(description="What was looked at.", examples=["operator"])
    ok: bool = Field(description="Whether it is as it should be.", examples=[True])
    detail: str = Field(description="How it is.", examples=["training-operator answers"])
    mend: str = Field(description="What to do about it, where it is not.", examples=[""])


class Cluster(View):
    """A cluster as runs find it."""

    name: str = Field(description="Its name.", examples=["local"])
    namespace: str = Field(description="Where its objects live.", examples=["default"])
    ready: bool = Field(description="Whether every check is as it should be.", examples=[True])
    kind: str | None = Field(description="The kind of object that a run becomes.", examples=["PyTorchJob"])
    kinds: dict[str, str] = Field(
        description="Why it is that one: of each kind, whether it can be made here.",
        examples=[{"PyTorchJob": "the one kind that the local cluster executes"}],
    )
    storage: str = Field(description="Where runs without a checkpoint.uri write.", examples=["/data/runs"])
    capacity: Capacity = Field(description="What it has.")
    checks: list[Check] = Field(description="What runs need of it.")


class Clusters(View):
    """The clusters."""

    items: list[Cluster] = Field(description="The clusters.")


@router.get("/clusters", summary="Look at the clusters")
def clusters(context: Services) -> Clusters:
    """Every cluster, looked at now: what it has, what it lacks, and how that is mended."""
    return Clusters(items=[Cluster.model_validate(asdict(one)) for one in state.clusters(context)])
