"""Attempts: the executions of a run, and the object of each."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field

from controlplane.api.body import JsonRoute
from controlplane.api.views import CREATED, FINISHED, OBJECT, STARTED, RunRef, Services, View
from controlplane.services import attempts

router = APIRouter(tags=["runs"], route_class=JsonRoute)

AttemptNumber = Annotated[
    int | None, Query(description="The attempt; the newest unless given.", examples=[1], ge=1, le=1 << 31)
]


class Pod(View):
    """A pod as last seen."""

    name: str = Field(description="Its name.", examples=[f"{OBJECT}-master-0"])
    uid: str = Field(description="What tells it from another of its name.", examples=["4242-1795518302-6f1c"])
    rank: int = Field(description="Its node's rank.", examples=[0])
    phase: str = Field(description="Pending, Running, Succeeded or Failed.", examples=["Running"])
    reason: str | None = Field(description="Why, as a stable word.", examples=[None])
    message: str | None = Field(description="Why, as a sentence.", examples=[None])
    exit_code: int | None = Field(description="Its exit code; 128 + n for a signal n.", examples=[None])
    node: str | None = Field(description="The machine that it was placed on.", examples=["gpu-7"])
    started_at: datetime | None = Field(description="When it first ran.", examples=[STARTED])
    finished_at: datetime | None = Field(description="When it ended.", examples=[None])


class Pods(View):
    """The pods of an attempt."""

    attempt: int = Field(description="The attempt.", examples=[1])
    name: str = Field(description="Its object's name.", examples=[OBJECT])
    live: bool = Field(
        description="Whether the cluster shows them now; else they are as last seen: the attempt is over, or the "
        "cluster does not answer.",
        examples=[True],
    )
    items: list[Pod] = Field(description="The pods, by rank.")


class Attempt(View):
    """One execution of a run. From `reason` to `last_lines` it tells of the rank that failed first."""

    attempt: int = Field(description="Its number.", examples=[1])
    name: str = Field(description="Its object's name.", examples=[OBJECT])
    uid: str | None = Field(description="Its object's uid.", examples=["9f0a7c"])
    phase: str = Field(
        description="The run's while it lives; then succeeded, failed or cancelled.", examples=["running"]
    )
    charged: bool | None = Field(description="Whether its failure counts against limits.max_restarts.", examples=[None])
    reason: str | None = Field(description="Why it ended, as a stable word.", examples=[None])
    message: str | None = Field(description="The same as a sentence.", examples=[None])
    rank: int | None = Field(description="The rank that failed first.", examples=[None])
    exit_code: int | None = Field(description="Its exit code.", examples=[None])
    signal: str | None = Field(description="The signal that ended it.", examples=[None])
    step: int | None = Field(description="The step that it had reached.", examples=[None])
    last_lines: list[str] = Field(description="The last lines that it wrote.", examples=[[]])
    pods: list[Pod] = Field(description="Its pods.")
    resumed_from: int | None = Field(description="The step of the checkpoint that it started from.", examples=[None])
    created_at: datetime = Field(description="When it was decided.", examples=[CREATED])
    started_at: datetime | None = Field(description="When all of its pods first ran.", examples=[STARTED])
    finished_at: datetime | None = Field(description="When it ended.", examples=[FINISHED])


class Attempts(View):
    """A run's attempts."""

    items: list[Attempt] = Field(description="The attempts, oldest first.")


@router.get("/runs/{run}/attempts", summary="List a run's attempts")
def list_attempts(run: RunRef, context: Services) -> Attempts:
    """The run's attempts, oldest first, each with its pods and how it ended."""
    return Attempts.model_validate({"items": attempts.attempts(context, run)})


@router.get("/runs/{run}/pods", summary="List a run's pods")
def list_pods(run: RunRef, context: Services, attempt: AttemptNumber = None) -> Pods:
    """The pods of an attempt: phase, node, reason and exit code of each, live or as last seen."""
    return Pods.model_validate(attempts.pods(context, run, attempt))


@router.get("/runs/{run}/manifest", summary="Show an attempt's object")
def manifest(run: RunRef, context: Services, attempt: AttemptNumber = None) -> dict[str, Any]:
    """The object that the cluster was given for an attempt, as JSON. No secret is in it."""
    return attempts.manifest(context, run, attempt)
