"""Checkpoints: what a run can go on from, and the wish for one more."""

from __future__ import annotations

from datetime import datetime

from fastapi import APIRouter
from pydantic import Field

from controlplane.api.body import JsonRoute
from controlplane.api.runs import Run, show
from controlplane.api.views import FINISHED, RUN_ID, RunRef, Services, User, View
from controlplane.services import checkpoints

router = APIRouter(tags=["runs"], route_class=JsonRoute)
FOLDER = f"/data/runs/{RUN_ID}"


class Checkpoint(View):
    """A complete checkpoint. What its `meta.json` does not say is null."""

    step: int = Field(description="The optimizer step that it was written after.", examples=[100])
    attempt: int | None = Field(description="The attempt that wrote it.", examples=[1])
    time: datetime | None = Field(description="When it was published.", examples=[FINISHED])
    size: int | None = Field(description="Bytes of its files.", examples=[43_200_512])
    ranks: int | None = Field(description="Ranks that wrote it; any number can read it.", examples=[2])
    folder: str | None = Field(description="Its folder.", examples=[f"{FOLDER}/checkpoints/step-00000100-attempt-1"])


class Checkpoints(View):
    """A run's checkpoints."""

    folder: str = Field(description="The run folder.", examples=[FOLDER])
    seen: bool = Field(
        description="Whether the folder is on this machine and was looked at; else `items` holds the last checkpoint "
        "that the run has told of.",
        examples=[True],
    )
    items: list[Checkpoint] = Field(description="The checkpoints, oldest first.")


@router.get("/runs/{run}/checkpoints", summary="List a run's checkpoints")
def list_checkpoints(run: RunRef, context: Services) -> Checkpoints:
    """The complete checkpoints that count, oldest first: the next attempt goes on from the last one."""
    return Checkpoints.model_validate(checkpoints.checkpoints(context, run))


@router.post("/runs/{run}/checkpoints", status_code=202, summary="Ask for a checkpoint now")
def request_checkpoint(run: RunRef, context: Services, user: User) -> Run:
    """Have the run's trainer write a checkpoint after its present step, and go on. Twice before it reports is once."""
    return show(checkpoints.request_checkpoint(context, run, actor=user))
