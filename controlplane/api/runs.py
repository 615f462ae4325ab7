"""Runs: asked for, looked at, cancelled, tried again, cloned."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Response
from pydantic import Field

from controlplane import tracing
from controlplane.api.body import JsonRoute
from controlplane.api.plans import Resolved
from controlplane.api.views import (
    CREATED,
    OBJECT,
    RUN_ID,
    STARTED,
    IdempotencyKey,
    IfMatch,
    RunRef,
    Services,
    User,
    View,
    revisions,
)
from controlplane.domain.phases import Desired, Phase
from controlplane.domain.spec import RunSpec
from controlplane.services import runs
from controlplane.services.views import RunView

router = APIRouter(tags=["runs"], route_class=JsonRoute)
STREAMED = ("logs", "events", "metrics")
PARTS = ("manifest", "attempts", "pods", "checkpoints", *STREAMED)


class Progress(View):
    """How far a run is: the newest of its points."""

    step: int = Field(description="The step.", examples=[120])
    steps: int = Field(description="Steps in all.", examples=[200])
    loss: float | None = Field(None, description="Training loss, nats a token.", examples=[3.12])
    val_loss: float | None = Field(None, description="Loss on the held-out split, as last evaluated.", examples=[3.4])
    tokens_per_s: float | None = Field(None, description="Tokens a second over all ranks.", examples=[35120.0])
    best_loss: float | None = Field(None, description="The lowest training loss so far.", examples=[3.05])
    best_val_loss: float | None = Field(None, description="The lowest held-out loss so far.", examples=[3.4])
    eta_s: float | None = Field(None, description="Seconds to the last step.", examples=[41.0])
    mfu: float | None = Field(None, description="Part of the GPUs' peak FLOP/s; null on CPU.", examples=[None])
    memory_bytes: int | None = Field(None, description="Memory of rank 0, in bytes.", examples=[629145600])
    time: float | None = Field(
        None, description="When it was measured, in seconds since 1970.", examples=[1795518320.5]
    )


class ClusterObject(View):
    """The object that executes a run's newest attempt."""

    cluster: str = Field(description="The cluster's name.", examples=["local"])
    namespace: str = Field(description="The object's namespace.", examples=["default"])
    kind: str = Field(description="The object's kind.", examples=["PyTorchJob"])
    name: str = Field(description="The object's name.", examples=[OBJECT])


class Run(View):
    """A run: what was asked for, what it became, and how far it is."""

    id: str = Field(description="The run's id.", examples=[RUN_ID])
    name: str = Field(description="Its display name, unique among live runs.", examples=["first-try"])
    phase: Phase = Field(description="What was last observed of it (docs/lifecycle.md).", examples=["running"])
    desired: Desired = Field(description="What its user wants of it.", examples=["running"])
    reason: str | None = Field(description="Why it is in this phase, as a stable word.", examples=[None])
    message: str | None = Field(description="The same as a sentence.", examples=[None])
    attempt: int = Field(description="The number of the newest attempt.", examples=[1])
    size: str = Field(description="The named size; empty for a preparation.", examples=["tiny"])
    spec: dict[str, Any] = Field(description="What its user gave.", examples=[{"size": "tiny", "name": "first-try"}])
    resolved: Resolved = Field(description="Everything that it became: nothing is left open.")
    progress: Progress | None = Field(description="How far it is; null before its first step.")
    kubernetes: ClusterObject = Field(description="The object that executes its newest attempt.")
    folder: str = Field(description="Where checkpoints and metrics.jsonl lie.", examples=[f"/data/runs/{RUN_ID}"])
    labels: dict[str, str] = Field(description="Labels to find it by.", examples=[{"team": "lm"}])
    notes: str | None = Field(description="What its user wants to remember of it.", examples=["with Muon"])
    pinned: bool = Field(description="Whether it is one of those to keep at hand.", examples=[False])
    user: str = Field(description="Who asked for it.", examples=["local"])
    revision: int = Field(
        description="Grows with each change that a user makes; the reply's ETag is the same number in quotes.",
        examples=[1],
    )
    restarts: int = Field(description="Restarts that count against limits.max_restarts.", examples=[0])
    checkpoint_step: int | None = Field(description="Step of its last complete checkpoint.", examples=[100])
    created_at: datetime = Field(description="When it was asked for.", examples=[CREATED])
    started_at: datetime | None = Field(description="When all of its pods first ran.", examples=[STARTED])
    finished_at: datetime | None = Field(description="When it ended.", examples=[None])
    retry_of: str | None = Field(description="The run that this one tries again.", examples=[None])
    clone_of: str | None = Field(description="The run whose spec it began with.", examples=[None])
    after: str | None = Field(description="The run that must succeed before this one starts.", examples=[None])
    sweep: str | None = Field(description="The sweep that made it.", examples=[None])
    task: str | None = Field(
        description="What it does, where it does not train: mostly with `task_of`.", examples=[None]
    )
    task_of: str | None = Field(description="The run whose model it works on.", examples=[None])
    links: dict[str, str] = Field(
        description="Addresses of what belongs to it.", examples=[{"self": f"/v1/runs/{RUN_ID}"}]
    )


MADE: dict[int | str, dict[str, Any]] = {
    status: {
        "model": Run,
        "description": description,
        "headers": {
            "Location": {"description": "The run's address.", "schema": {"type": "string"}},
            "Idempotency-Replayed": {
                "description": "Whether the key had made it before.",
                "schema": {"type": "string", "enum": ["true", "false"]},
            },
        },
    }
    for status, description in ((201, "The new run."), (200, "The run that the same key had made before."))
}
TAGGED: dict[int | str, dict[str, Any]] = {
    200: {"headers": {"ETag": {"description": "The run's revision, for If-Match.", "schema": {"type": "string"}}}}
}
Overrides = Annotated[
    dict[str, Any],
    Body(
        description="What is to be different from the other run's spec: a JSON merge patch (RFC 7396) of it.",
        examples=[{"train": {"seed": 2}, "limits": None}],
    ),
]


@router.post("/runs", status_code=201, summary="Create a run", responses=MADE, response_model=Run)
async def create(spec: RunSpec, context: Services, user: User, idempotency_key: IdempotencyKey = None) -> Response:
    """Store a run and submit it; the reply does not wait for the cluster. 200 where the key had made it before."""
    run, replayed = await runs.create_soon(context, spec, idempotency_key=idempotency_key, principal=user)
    reply = Response(media_type="application/json")
    reply.body = made(run, reply, replayed=replayed).model_dump_json(by_alias=True).encode()
    reply.headers["content-length"] = str(len(reply.body))
    return reply


@router.get("/runs/{run}", summary="Show a run", responses=TAGGED)
def get(run: RunRef, response: Response, context: Services) -> Run:
    """One run."""
    return tagged(runs.get(context, run), response)


@router.post("/runs/{run}/cancel", status_code=202, summary="Cancel a run")
def cancel(run: RunRef, context: Services, user: User, if_match: IfMatch = None) -> Run:
    """Ask for the run's end. It writes a checkpoint first; a run that has ended stays as it is."""
    return show(runs.cancel_run(context, run, revisions=revisions(if_match), actor=user))


@router.post("/runs/{run}/suspend", status_code=202, summary="Suspend a run")
def suspend(run: RunRef, context: Services, user: User, if_match: IfMatch = None) -> Run:
    """Stop the run for now: it writes a checkpoint, gives back what it holds, and can be resumed."""
    return show(runs.suspend_run(context, run, revisions=revisions(if_match), actor=user))


@router.post("/runs/{run}/resume", status_code=202, summary="Resume a run")
def resume(run: RunRef, context: Services, user: User, if_match: IfMatch = None) -> Run:
    """Let a suspended run go on from its last checkpoint."""
    return show(runs.resume_run(context, run, revisions=revisions(if_match), actor=user))


@router.post("/runs/{run}/retry", status_code=201, summary="Try a run again", responses=MADE)
def retry(
    run: RunRef, response: Response, context: Services, user: User, idempotency_key: IdempotencyKey = None
) -> Run:
    """A new run (`retry_of`) that goes on from an ended run's last checkpoint."""
    new, replayed = runs.retry_run(context, run, idempotency_key=idempotency_key, principal=user)
    return made(new, response, replayed=replayed)


@router.post("/runs/{run}/clone", status_code=201, summary="Clone a run", responses=MADE)
def clone(
    run: RunRef,
    response: Response,
    context: Services,
    user: User,
    overrides: Overrides = {},  # noqa: B006 - FastAPI copies it
    idempotency_key: IdempotencyKey = None,
) -> Run:
    """A new run (`clone_of`) with another's spec, from the start; its name, notes and checkpoint.uri are left out."""
    new, replayed = runs.clone_run(context, run, overrides, idempotency_key=idempotency_key, principal=user)
    return made(new, response, replayed=replayed)


def tagged(run: RunView, response: Response) -> Run:
    """A run as the API shows it, with its revision as the reply's ETag."""
    response.headers["etag"] = f'"{run.revision}"'
    return show(run)


def show(run: RunView) -> Run:
    """A run as the API shows it."""
    here = f"/v1/runs/{run.id}"
    parts = {name: f"{here}/{name}" for name in PARTS}
    streams = {f"{name}_stream": f"{here}/{name}/stream" for name in STREAMED}
    return Run.model_validate({**vars(run), "links": {"self": here, **parts, **streams}})


def made(run: RunView, response: Response, *, replayed: bool) -> Run:
    """A run that was just made, or had been made by the same key before, with the headers that say so."""
    tracing.made(run.id)
    response.headers["location"] = f"/v1/runs/{run.id}"
    response.headers["idempotency-replayed"] = str(replayed).lower()
    response.status_code = 200 if replayed else 201
    return show(run)
