"""Notifications: what was told of runs, to whom, and what was answered."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from controlplane.api.body import JsonRoute
from controlplane.api.views import FINISHED, RUN_ID, Services, View
from controlplane.domain.phases import Phase
from controlplane.services import notifications

router = APIRouter(tags=["notifications"], route_class=JsonRoute)
State = Literal["waiting", "delivered", "given up"]


class Notification(View):
    """One event of a run, told to one destination."""

    run: str = Field(description="The run's id.", examples=[RUN_ID])
    name: str = Field(description="The run's name.", examples=["first-try"])
    event: int = Field(description="The event's `seq`.", examples=[9])
    phase: Phase = Field(description="The phase that it tells of.", examples=["failed"])
    destination: str = Field(description="Whom it is told, as the server's configuration calls it.", examples=["ops"])
    state: State = Field(description="Whether it was taken.", examples=["delivered"])
    tries: int = Field(description="How often it was tried.", examples=[1])
    answer: str | None = Field(description="The last answer.", examples=["200 OK"])
    created_at: datetime = Field(description="Since when it is to be told.", examples=[FINISHED])
    due_at: datetime | None = Field(description="When it is tried next.", examples=[None])
    finished_at: datetime | None = Field(description="When it was taken, or given up.", examples=[FINISHED])


class Notifications(View):
    """Notifications, newest first."""

    items: list[Notification] = Field(description="The notifications.")


RunFilter = Annotated[
    str | None, Query(description="Only of runs with this id or name.", examples=[RUN_ID], min_length=1, max_length=128)
]
StateFilter = Annotated[State | None, Query(description="Only in this state.", examples=["waiting"])]
Limit = Annotated[int, Query(description="The most.", examples=[50], ge=1, le=notifications.LARGEST_PAGE)]


@router.get("/notifications", summary="List notifications")
def list_notifications(
    context: Services, run: RunFilter = None, state: StateFilter = None, limit: Limit = 50
) -> Notifications:
    """What was told of runs, newest first, with the last answer of each destination."""
    found = notifications.notifications(context, run_id=run, state=state, limit=limit)
    return Notifications.model_validate({"items": found})
