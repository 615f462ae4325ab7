"""Explanations: what ails a run, and what helps."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import Field

from controlplane.api.attempts import AttemptNumber
from controlplane.api.body import JsonRoute
from controlplane.api.views import RUN_ID, RunRef, Services, View
from controlplane.domain.phases import Phase
from controlplane.services.explanations import explain

router = APIRouter(tags=["runs"], route_class=JsonRoute)


class Explanation(View):
    """Why a run is where it is. From `attempt` to `last_lines` it tells of the rank that failed first, if one did."""

    run: str = Field(description="The run's id.", examples=[RUN_ID])
    phase: Phase = Field(description="Where it is.", examples=["failed"])
    text: str = Field(
        description="All of it in a paragraph.",
        examples=["Run first-try (run_01...) has failed. Attempt 1 ended at step 120: DiskFull: rank 0 ended with ..."],
    )
    reason: str | None = Field(description="The stable word (docs/diagnosis.md).", examples=["DiskFull"])
    message: str | None = Field(
        description="The reason as a sentence.",
        examples=["rank 0 ended with exit code 1: OSError: [Errno 28] No space left on device"],
    )
    cause: str | None = Field(description="What it most likely comes from.", examples=["A file system had no room."])
    mend: str | None = Field(description="What helps.", examples=["Free some, or give a larger checkpoint.uri."])
    attempt: int | None = Field(description="The attempt that ended so.", examples=[1])
    rank: int | None = Field(description="The rank that failed first.", examples=[0])
    exit_code: int | None = Field(description="Its exit code; 128 + n for a signal n.", examples=[1])
    signal: str | None = Field(description="The signal that ended it.", examples=[None])
    step: int | None = Field(description="The step that it had reached.", examples=[120])
    last_lines: list[str] = Field(
        description="Its last lines, at most 50.", examples=[["OSError: [Errno 28] No space left on device"]]
    )


@router.get("/runs/{run}/explanation", summary="Explain a run")
def get(run: RunRef, context: Services, attempt: AttemptNumber = None) -> Explanation:
    """Why a run is where it is, or, with `attempt`, why that one ended: reason, cause, mend and last lines."""
    return Explanation.model_validate(explain(context, run, attempt))
