"""Plans: how a run would lie on this cluster, and the exact bytes that it needs."""

from __future__ import annotations

from typing import Any, Self

from fastapi import APIRouter
from pydantic import Field

from controlplane.api.body import JsonRoute
from controlplane.api.problems import FieldProblem
from controlplane.api.views import RUN_ID, Services, View
from controlplane.domain.spec import RunSpec
from controlplane.services import plans

router = APIRouter(tags=["plans"], route_class=JsonRoute)


class Resolved(View):
    """A run with nothing left open."""

    nodes: int = Field(description="Nodes, each a pod.", examples=[1])
    processes_per_node: int = Field(description="Ranks on each node.", examples=[2])
    gpus_per_node: int = Field(description="GPUs of each node.", examples=[0])
    cpus_per_node: int | float = Field(description="CPU cores of each node; may be a part of one.", examples=[2])
    memory_per_node: int = Field(description="Bytes of memory of each node.", examples=[1625051136])
    world_size: int = Field(description="Ranks in all.", examples=[2])
    config: dict[str, Any] = Field(
        description="Every setting of the trainer, given or derived.",
        examples=[{"size": "tiny", "dim": 128, "steps": 200, "out": f"/data/runs/{RUN_ID}"}],
    )
    parameters: int = Field(description="The model's parameters.", examples=[902400])
    tokens: int = Field(description="Tokens to train on.", examples=[3276800])
    steps: int = Field(description="Optimizer steps.", examples=[200])
    state_bytes: dict[str, int] = Field(
        description="Bytes of state on the fullest rank, by kind.",
        examples=[{"parameters": 1804800, "gradients": 1804800, "optimizer": 3609600, "total": 7219200}],
    )
    env: dict[str, str] = Field(description="The user's environment variables.", examples=[{"HF_HUB_OFFLINE": "1"}])
    labels: dict[str, str] = Field(description="The user's labels.", examples=[{"team": "lm"}])
    grace_s: int = Field(description="Seconds between SIGTERM and SIGKILL.", examples=[120])


class Capacity(View):
    """What the cluster has, and what of it is free now."""

    cpus: int = Field(description="CPU cores.", examples=[2])
    memory: int = Field(description="Bytes of memory.", examples=[25769803776])
    gpus: int = Field(description="GPUs.", examples=[0])
    gpu_type: str | None = Field(description="Their type.", examples=[None])
    free_cpus: int = Field(description="CPU cores that are free.", examples=[2])
    free_memory: int = Field(description="Bytes of memory that are free.", examples=[25769803776])
    free_gpus: int = Field(description="GPUs that are free.", examples=[0])


class Plan(View):
    """How a run would lie on this cluster."""

    size: str = Field(description="The named size.", examples=["tiny"])
    fits: bool = Field(description="Whether the cluster could ever run it.", examples=[True])
    resolved: Resolved = Field(description="The run with nothing left open.")
    capacity: Capacity = Field(description="What the cluster has.")
    problems: list[FieldProblem] = Field(description="Why it does not fit.", examples=[[]])

    @classmethod
    def of(cls, plan: plans.Plan) -> Self:
        """The service's plan as the API shows it."""
        return cls.model_validate(
            {
                "size": plan.size,
                "fits": plan.fits,
                "resolved": plan.resolved.to_json(),
                "capacity": plan.capacity,
                "problems": [vars(problem) for problem in plan.problems],
            }
        )


@router.post("/plans", summary="Plan a run")
def plan(spec: RunSpec, context: Services) -> Plan:
    """Layout and exact bytes of the run that the body describes, whether it fits here or not; nothing is created."""
    return Plan.of(plans.plan(context, spec))
