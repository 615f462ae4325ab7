"""Plans: how a run would lie on this cluster, the exact bytes that it needs, the objects that it would become."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Self

from fastapi import APIRouter, Query
from pydantic import Field

from controlplane.api.body import JsonRoute
from controlplane.api.problems import FieldProblem
from controlplane.api.views import FINISHED, OBJECT, RUN_ID, RunRef, Services, View
from controlplane.domain.spec import RunSpec
from controlplane.services import measured, plans

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
    folder: str = Field(
        "", description="Where its output lies, as its user knows it.", examples=["pvc://runs/first-try"]
    )
    claims: list[str] = Field([], description="Volume claims that its pods mount.", examples=[["runs"]])
    kind: str = Field("PyTorchJob", description="Kind of its objects.", examples=["PyTorchJob"])
    runtime: str | None = Field(None, description="The runtime that its TrainJobs name; null: ours.", examples=[None])
    placement: dict[str, Any] = Field(
        {}, description="What its pods ask of nodes beside their share.", examples=[{"gpu": "NVIDIA-H100-80GB-HBM3"}]
    )
    scheduling: dict[str, Any] = Field(
        {}, description="Its queue and priority, where the request names them.", examples=[{"queue": "research"}]
    )
    secrets: dict[str, dict[str, str]] = Field(
        {},
        description="Variables that a Secret holds, by name: where they are, never what.",
        examples=[{"HF_TOKEN": {"name": "hf", "key": "token"}}],
    )
    pod_overrides: dict[str, Any] = Field({}, description="The patch of its pods.", examples=[{}])
    ttl_after_finish_s: int | None = Field(
        None, description="Seconds after which an ended object is removed.", examples=[None]
    )
    planned: dict[str, Any] = Field(
        {},
        description="What the planner says of it on its GPUs: layout, memory by kind, seconds of a step by kind, days, "
        "the next best layouts; `refused` where nothing fits; empty for GPUs and models that it does not know.",
        examples=[{"gpu": "h100", "gpus": 8, "step": {"seconds": 1.96}, "forecast": {"days": 0.35, "mfu": 0.53}}],
    )


class Capacity(View):
    """What the cluster has, and what of it is free now."""

    cpus: int = Field(description="CPU cores.", examples=[2])
    memory: int = Field(description="Bytes of memory.", examples=[25769803776])
    gpus: int = Field(description="GPUs.", examples=[0])
    gpu_type: str | None = Field(description="Their type.", examples=[None])
    free_cpus: int = Field(description="CPU cores that are free.", examples=[2])
    free_memory: int = Field(description="Bytes of memory that are free.", examples=[25769803776])
    free_gpus: int = Field(description="GPUs that are free.", examples=[0])
    largest: tuple[int, int, int] | None = Field(
        description="CPUs, bytes of memory and GPUs of the largest node, which bounds a pod.",
        examples=[[2, 25769803776, 0]],
    )
    known: bool = Field(
        description="Whether the cluster shows its nodes; the numbers say nothing else.", examples=[True]
    )


class Formula(View):
    """A formula of a plan."""

    what: str = Field(description="What it gives.", examples=["optimizer"])
    formula: str = Field(
        description="With its numbers.", examples=["32 bytes a parameter of a slice, at 0.895 of 3,352 GB/s = 5.2 ms"]
    )
    source: str = Field(description="Where these come from.", examples=["docs/notebook.md"])


class Plan(View):
    """How a run would lie on this cluster."""

    size: str = Field(description="The named size.", examples=["tiny"])
    fits: bool = Field(description="Whether the cluster could ever run it.", examples=[True])
    resolved: Resolved = Field(description="The run with nothing left open.")
    capacity: Capacity = Field(description="What the cluster has.")
    problems: list[FieldProblem] = Field(description="Why it does not fit.", examples=[[]])
    formulas: list[Formula] = Field(description="How `resolved.planned` was worked out; none without a plan.")

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
                "formulas": [line._asdict() for line in plan.formulas],
            }
        )


@router.post("/plans", summary="Plan a run")
def plan(spec: RunSpec, context: Services) -> Plan:
    """Layout and exact bytes of the run that the body describes, whether it fits here or not; nothing is created."""
    return Plan.of(plans.plan(context, spec))


class DryRun(View):
    """What the cluster says to the object, which it does not make."""

    result: str = Field(description="accepted, refused or unknown.", examples=["accepted"])
    problems: list[FieldProblem] = Field(
        description="Why it is refused; each names the field that the refused part was made from.", examples=[[]]
    )
    detail: str = Field(description="Why nothing is known.", examples=[""])


class Preview(View):
    """What would be created."""

    plan: Plan = Field(description="Layout and bytes.")
    kind: str = Field(description="Kind of the object.", examples=["PyTorchJob"])
    reason: str = Field(description="Why that kind.", examples=["the request asks for it"])
    namespace: str = Field(description="Where it would live.", examples=["default"])
    audience: str | None = Field(
        description="Audience of the service-account token that pods show; null: each attempt has a secret of its own.",
        examples=["teragpt"],
    )
    manifest: dict[str, Any] = Field(description="The object.", examples=[{"kind": "PyTorchJob"}])
    companions: list[dict[str, Any]] = Field(
        description="What it needs beside it, made once for all runs of the namespace.",
        examples=[[{"kind": "Service"}]],
    )
    environment: dict[str, dict[str, str]] = Field(
        description="The training container's whole environment, by pod; Kubernetes adds five random characters to the "
        "names of a Job's and a TrainJob's pods.",
        examples=[{f"{OBJECT}-master-0": {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "23456"}}],
    )
    dry_run: DryRun = Field(description="What the cluster says to the object.")
    warnings: list[str] = Field(description="What to know before it is created.", examples=[[]])

    @classmethod
    def of(cls, preview: plans.Preview) -> Self:
        """The service's preview as the API shows it."""
        dry = {**vars(preview.dry_run), "problems": [vars(problem) for problem in preview.dry_run.problems]}
        shown = {**vars(preview), "plan": Plan.of(preview.plan), "dry_run": dry}
        return cls.model_validate({**shown, "companions": [*preview.companions], "warnings": [*preview.warnings]})


@router.post("/runs:preview", summary="Show what would be created")
def preview(spec: RunSpec, context: Services) -> Preview:
    """Plan, object, per-pod environment and the cluster's own word on a run that is not created."""
    return Preview.of(plans.preview(context, spec))


class Comparison(View):
    """A run's plan beside its steps."""

    planned: dict[str, float] = Field(
        description="tokens_per_second, step_seconds, mfu and peak_memory as planned; empty without a plan.",
        examples=[{"tokens_per_second": 66840.0, "step_seconds": 1.96, "mfu": 0.53, "peak_memory": 68e9}],
    )
    measured: dict[str, float] = Field(
        description="The same, as reported: medians without each attempt's first point; of memory rank 0's most.",
        examples=[{"tokens_per_second": 61200.0, "step_seconds": 2.14, "mfu": 0.485, "peak_memory": 66e9}],
    )
    measured_over_planned: dict[str, float] = Field(
        description="What was measured over what was planned.", examples=[{"step_seconds": 1.09, "peak_memory": 0.97}]
    )
    points: int = Field(description="Points that were measured.", examples=[199])


class Measured(Comparison):
    """What a run that has ended took beside its plan, as it was recorded."""

    run: str = Field(description="The run's id.", examples=[RUN_ID])
    name: str = Field(description="Its name.", examples=["first-try"])
    size: str = Field(description="Its size.", examples=["tiny"])
    finished_at: datetime | None = Field(description="When it ended.", examples=[FINISHED])
    gpu: str = Field(description="What its ranks computed on, as its plan knows it.", examples=["h100"])
    layout: dict[str, Any] = Field(description="Its plan's layout.", examples=[{"dp_shard": 8, "micro_batch": 4}])


class MeasuredRuns(View):
    """Runs that have ended, the newest first."""

    items: list[Measured] = Field(description="The runs.")


@router.get("/measured", summary="List what runs took beside their plans")
def list_measured(
    context: Services,
    limit: Annotated[int, Query(ge=1, le=measured.MOST, description="How many.", examples=[100])] = measured.MOST,
) -> MeasuredRuns:
    """Every run that has ended, was planned and took steps, from about a minute after its end on."""
    return MeasuredRuns.model_validate({"items": [vars(one) for one in measured.finished(context, limit)]})


@router.get("/runs/{run}/plan", summary="Compare a run with its plan")
def compare(run: RunRef, context: Services) -> Comparison:
    """What was planned and what its steps took, as far as it got."""
    return Comparison.model_validate(vars(measured.compared(context, run)))
