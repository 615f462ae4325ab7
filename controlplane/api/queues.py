"""Queues: who waits, and whether anybody is begun."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import Field

from controlplane.api.body import JsonRoute
from controlplane.api.views import CREATED, Services, User, View
from controlplane.domain.queues import QueueChange, QueueState
from controlplane.services import queues

router = APIRouter(tags=["queues"], route_class=JsonRoute)


class Queue(View):
    """A queue of runs."""

    name: str = Field(description="Its name; `default` holds runs that name none.", examples=["default"])
    state: QueueState = Field(description="Whether its runs are begun.", examples=["open"])
    note: str | None = Field(description="What those who wait are told.", examples=[None])
    changed_at: datetime | None = Field(description="When it was opened or closed.", examples=[CREATED])
    changed_by: str | None = Field(description="Who did so.", examples=["local"])
    waiting: int = Field(description="Runs that hold nothing and are not begun, or suspended.", examples=[3])
    under_way: int = Field(description="Runs that are submitted, run, or are about to restart.", examples=[1])
    drained: bool = Field(description="Whether it is closed and nothing of it is under way.", examples=[False])


class Queues(View):
    """All queues, by name."""

    items: list[Queue] = Field(description="The queues.")


NO_NOTE = QueueChange()
QueueRef = Annotated[str, Path(description="A queue's name.", examples=["default"], min_length=1, max_length=253)]


@router.get("/queues", summary="List queues")
def list_queues(context: Services) -> Queues:
    """Every queue with its runs counted."""
    return Queues.model_validate({"items": queues.queues(context)})


@router.post("/queues/{queue}/pause", summary="Pause a queue")
def pause(queue: QueueRef, context: Services, user: User, change: QueueChange = NO_NOTE) -> Queue:
    """Begin no attempt more, restarts included, until it is resumed; what runs goes on."""
    return _set(context, queue, QueueState.PAUSED, change, user)


@router.post("/queues/{queue}/drain", summary="Drain a queue")
def drain(queue: QueueRef, context: Services, user: User, change: QueueChange = NO_NOTE) -> Queue:
    """Begin no run more until it is resumed; those that have begun go on to their ends, over restarts."""
    return _set(context, queue, QueueState.DRAINING, change, user)


@router.post("/queues/{queue}/resume", summary="Resume a queue")
def resume(queue: QueueRef, context: Services, user: User) -> Queue:
    """Begin its runs again."""
    return _set(context, queue, QueueState.OPEN, NO_NOTE, user)


def _set(context: Services, queue: str, state: QueueState, change: QueueChange, user: str) -> Queue:
    return Queue.model_validate(queues.set_state(context, queue, state, note=change.note, actor=user))
