"""Sweeps: a run for each point of a grid or a list, and one table of what came of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from pydantic import AfterValidator, Field

from controlplane.api.addresses import named
from controlplane.api.body import JsonRoute
from controlplane.api.runs import MADE
from controlplane.api.views import CREATED, RUN_ID, IdempotencyKey, Services, User, View
from controlplane.domain.phases import Phase
from controlplane.domain.sweeps import SweepSpec
from controlplane.services import sweeps
from controlplane.services.views import SweepPage, SweepTable, SweepView

router = APIRouter(tags=["sweeps"], route_class=JsonRoute)
SWEEP_ID = "sweep_01JD3M7X9K5V2Q8R4T6W0Y1Z2A"


class Sweep(View):
    """A sweep, and where its runs are."""

    id: str = Field(description="The sweep's id.", examples=[SWEEP_ID])
    name: str = Field(description="Its display name; its runs are called after it.", examples=["rates"])
    user: str = Field(description="Who asked for it.", examples=["local"])
    parallelism: int = Field(description="The most of its runs that are under way at once.", examples=[2])
    spec: dict[str, Any] = Field(description="What its runs have in common.", examples=[{"size": "tiny"}])
    phases: dict[Phase, int] = Field(description="Its runs by phase.", examples=[{"running": 2, "queued": 2}])
    ended: bool = Field(description="Whether none of its runs goes on.", examples=[False])
    created_at: datetime = Field(description="When it was asked for.", examples=[CREATED])
    cancelled_at: datetime | None = Field(description="When its end was asked for.", examples=[None])
    links: dict[str, str] = Field(
        description="Addresses of what belongs to it.", examples=[{"self": f"/v1/sweeps/{SWEEP_ID}"}]
    )


class SweepPoint(View):
    """A point of a sweep, and what came of it: losses in nats a token, null before they are measured."""

    point: int = Field(description="Its number, from 0.", examples=[0])
    values: dict[str, Any] = Field(
        description="What it sets, by JSON pointer into the spec.", examples=[{"/train/learning_rate": 0.001}]
    )
    run: str = Field(description="Its run's id.", examples=[RUN_ID])
    name: str = Field(description="Its run's name: the sweep's, and the point's number.", examples=["rates-0"])
    phase: Phase = Field(description="Its run's phase.", examples=["running"])
    reason: str | None = Field(description="Why its run is in this phase, as a stable word.", examples=[None])
    message: str | None = Field(description="The same as a sentence.", examples=[None])
    step: int | None = Field(description="The newest step.", examples=[120])
    steps: int | None = Field(description="Steps in all.", examples=[200])
    loss: float | None = Field(description="The last training loss.", examples=[3.12])
    best_loss: float | None = Field(description="The lowest training loss.", examples=[3.05])
    val_loss: float | None = Field(description="The last held-out loss.", examples=[3.4])
    best_val_loss: float | None = Field(description="The lowest held-out loss.", examples=[3.4])
    tokens_per_s: float | None = Field(description="Tokens a second over all ranks.", examples=[35120.0])


class SweepResults(Sweep):
    """A sweep with the table of its results."""

    items: list[SweepPoint] = Field(description="Its points, in order; those whose run was purged are left out.")


class Sweeps(View):
    """A page of sweeps, newest first."""

    items: list[Sweep] = Field(description="The sweeps.")
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page.", examples=[None])


SweepRef = Annotated[
    str,
    Path(description="A sweep's id or name.", examples=[SWEEP_ID], min_length=1, max_length=128),
    AfterValidator(named),
]
Limit = Annotated[int, Query(description="Most sweeps of a page.", examples=[50], ge=1, le=sweeps.LARGEST_PAGE)]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before.", examples=[None], max_length=128)]
SWEPT: dict[int | str, dict[str, Any]] = {
    status: {**reply, "model": SweepResults, "description": description}
    for (status, reply), description in zip(
        MADE.items(), ("The new sweep.", "The sweep that the same key had made before."), strict=True
    )
}


@router.post("/sweeps", status_code=201, summary="Create a sweep", responses=SWEPT)
def create(
    spec: SweepSpec, response: Response, context: Services, user: User, idempotency_key: IdempotencyKey = None
) -> SweepResults:
    """Store a run for each point, all of them or none; `parallelism` of them go at once. 200 as for a run."""
    sweep, replayed = sweeps.create_sweep(context, spec, idempotency_key=idempotency_key, principal=user)
    response.headers["location"] = f"/v1/sweeps/{sweep.id}"
    response.headers["idempotency-replayed"] = str(replayed).lower()
    response.status_code = 200 if replayed else 201
    return _results(sweep)


@router.get("/sweeps", summary="List sweeps")
def list_sweeps(context: Services, limit: Limit = 50, cursor: Cursor = None) -> Sweeps:
    """Sweeps, newest first, a page at a time."""
    return _page(sweeps.list_sweeps(context, cursor=cursor, limit=limit))


@router.get("/sweeps/{sweep}", summary="Show a sweep")
def get(sweep: SweepRef, context: Services) -> SweepResults:
    """A sweep with one table of its results; where it is named, the newest of that name."""
    return _results(sweeps.get(context, sweep))


@router.post("/sweeps/{sweep}/cancel", status_code=202, summary="Cancel a sweep")
def cancel(sweep: SweepRef, context: Services, user: User) -> SweepResults:
    """Ask for the end of every run of it that goes on; each writes a checkpoint first."""
    return _results(sweeps.cancel_sweep(context, sweep, actor=user))


def _results(sweep: SweepTable) -> SweepResults:
    return SweepResults.model_validate({**vars(sweep), **_links(sweep)})


def _page(page: SweepPage) -> Sweeps:
    items = [Sweep.model_validate({**vars(sweep), **_links(sweep)}) for sweep in page.sweeps]
    return Sweeps(items=items, next_cursor=page.next_cursor)


def _links(sweep: SweepView) -> dict[str, Any]:
    return {"links": {"self": f"/v1/sweeps/{sweep.id}"}}
