"""Tasks: what is done with a trained run where its folder is, and what comes of it."""

from __future__ import annotations

from typing import Self

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from controlplane.api.body import JsonRoute
from controlplane.api.runs import Run, show
from controlplane.api.views import Authorization, RunRef, Services, User, bearer
from controlplane.services import tasks

router = APIRouter(tags=["tasks"], route_class=JsonRoute)
files = APIRouter(tags=["tasks"])  # their bodies are no JSON
TAR = "application/x-tar"


class Asked(BaseModel):
    """What to do: sample writes text, export hands back the model for transformers, pull the run folder."""

    model_config = ConfigDict(extra="forbid", strict=True)

    task: tasks.Task = Field(description="sample, export or pull.", examples=["sample"])
    prompt: str = Field(default="", description="Text to go on from.", examples=["def main("], max_length=65_536)
    tokens: int = Field(default=200, description="Tokens to write.", examples=[200], ge=1, le=100_000)
    temperature: float = Field(default=0.6, description="0 takes the likeliest token.", examples=[0.6], ge=0, le=100)
    top_k: int = Field(default=50, description="Only the k likeliest tokens; 0: all.", examples=[50], ge=0, le=1 << 31)
    top_p: float = Field(
        default=0.95, description="Only tokens that share this probability.", examples=[0.95], gt=0, le=1
    )
    seed: int | None = Field(
        default=None, description="The same seed writes the same text.", examples=[1], ge=0, lt=1 << 63
    )

    @model_validator(mode="after")
    def _no_more(self) -> Self:
        more = sorted(self.model_fields_set - {"task"})
        if self.task != "sample" and more:
            raise ValueError(f"got {', '.join(more)} with {self.task}; allowed: with sample alone")
        return self

    def arguments(self) -> list[str]:
        """As `python -m teragpt.task` takes them."""
        if self.task != "sample":
            return []
        numbers = self.model_dump(exclude={"task", "prompt"}, exclude_none=True)
        given = [part for name, value in numbers.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        return [*given, "--", self.prompt]


@router.post("/runs/{run}/tasks", status_code=201, summary="Do something with a trained model")
def create(run: RunRef, body: Asked, context: Services, user: User) -> Run:
    """A new run that samples, exports or copies where the run's folder is. Its log is the sample."""
    return show(tasks.create_task(context, run, body.task, body.arguments(), principal=user))


@files.put("/runs/{run}/output", status_code=204, summary="Hand back a task's files", include_in_schema=False)
async def receive(run: RunRef, request: Request, context: Services, authorization: Authorization = "") -> Response:
    """What a task's pod sends, as a tar archive."""
    taken = await run_in_threadpool(tasks.Output, context, run, bearer(authorization))
    whole = False
    try:
        async for piece in request.stream():
            await run_in_threadpool(taken.add, piece)
        whole = True
    except ClientDisconnect:
        return Response(status_code=400)
    finally:
        await run_in_threadpool(taken.end, whole=whole)
    return Response(status_code=204)


@files.get(
    "/runs/{run}/output",
    summary="Fetch a task's files",
    response_class=FileResponse,
    responses={200: {"content": {TAR: {"schema": {"type": "string", "format": "binary"}}}}},
)
def fetch(run: RunRef, context: Services) -> FileResponse:
    """The tar archive that an export or a pull has handed back; kept for a day."""
    return FileResponse(tasks.output(context, run), media_type=TAR)
