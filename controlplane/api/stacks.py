"""Stacks: where every rank stood when a run hung."""

from __future__ import annotations

from datetime import datetime

from fastapi import APIRouter
from pydantic import Field

from controlplane.api.body import JsonRoute
from controlplane.api.views import FINISHED, RUN_ID, RunRef, Services, View
from controlplane.services import stacks

router = APIRouter(tags=["runs"], route_class=JsonRoute)
TEXT = '== rank 0, process 4242\nThread 4242 (idle): "MainThread"\n    forward_backward (step.py:58)\n'


class StackFile(View):
    """The stacks of one rank, or of all."""

    file: str = Field(
        description="Its name in `faults/`, or the rank in whose log it is.", examples=["attempt-1-stacks.txt"]
    )
    time: datetime | None = Field(description="When it was written.", examples=[FINISHED])
    text: str = Field(description="Each thread's stack, innermost first; 256 KiB of it at most.", examples=[TEXT])


class Stacks(View):
    """Where the ranks of a run stood."""

    folder: str = Field(description="The run folder.", examples=[f"/data/runs/{RUN_ID}"])
    seen: bool = Field(
        description="Whether the folder is on this machine and was looked at; else the stacks are of the ranks' logs.",
        examples=[True],
    )
    items: list[StackFile] = Field(description="The newest 64 files, oldest first.")


@router.get("/runs/{run}/stacks", summary="Show where a run hung")
def list_stacks(run: RunRef, context: Services) -> Stacks:
    """The stacks that are kept when a run hangs: `attempt-N-stacks.txt` of all ranks, and the trainer's own of each.

    Of a folder that only pods see, what the ranks printed into their logs instead.
    """
    return Stacks.model_validate(stacks.stacks(context, run))
