"""Events: what happened to a run, in order."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import Field

from controlplane.api.body import JsonRoute
from controlplane.api.streams import Batch, EventStream, Message, Position, Source, parse_position, stream_responses
from controlplane.api.views import STARTED, LastEventId, RunRef, Services, Streams, View
from controlplane.domain.phases import Phase
from controlplane.services import attempts, runs

router = APIRouter(tags=["runs"], route_class=JsonRoute)

After = Annotated[int, Query(description="Only events with a greater `seq`.", examples=[0], ge=0, lt=1 << 63)]
Limit = Annotated[int, Query(description="Most events.", examples=[1000], ge=1, le=attempts.LARGEST_BATCH)]


class Event(View):
    """Something that happened to a run."""

    seq: int = Field(description="Grows by one with each event of the run.", examples=[4])
    time: datetime = Field(description="When it happened.", examples=[STARTED])
    kind: str = Field(
        description="created, phase, verdict, object or log; or what a user did: cancel, suspend, resume, change, "
        "delete, restore.",
        examples=["phase"],
    )
    attempt: int | None = Field(description="The attempt that it concerns.", examples=[1])
    message: str = Field(description="What happened.", examples=["every pod runs"])
    data: dict[str, Any] = Field(description="The same for programs.", examples=[{"phase": "running"}])


class Events(View):
    """A run's events."""

    items: list[Event] = Field(description="The events, oldest first.")


@router.get("/runs/{run}/events", summary="List a run's events")
def list_events(run: RunRef, context: Services, after: After = 0, limit: Limit = attempts.LARGEST_BATCH) -> Events:
    """The run's events beyond `after`, oldest first."""
    return Events.model_validate({"items": attempts.events(context, run, after=after, limit=limit)})


@router.get(
    "/runs/{run}/events/stream",
    summary="Follow a run's events",
    response_class=EventStream,
    responses=stream_responses("events"),
)
def stream(run: RunRef, context: Services, hub: Streams, last_event_id: LastEventId = None) -> Response:
    """Events as they happen, until the run has ended. A message's id is the event's `seq`."""
    run_id = runs.get(context, run).id

    def read(after: Position, limit: int) -> Batch:
        terminal = Phase(runs.get(context, run_id).phase).terminal
        found = attempts.events(context, run_id, after=after[0], limit=limit)
        messages = [
            Message((event.seq,), "event", Event.model_validate(event).model_dump(mode="json")) for event in found
        ]
        return Batch(messages, messages[-1].position if messages else after, terminal and not messages)

    source = Source(("events", run_id), read, lambda changed: context.store.signals.listen(run_id, changed))
    after = parse_position(last_event_id, 1, (attempts.last_event(context, run_id),))
    return EventStream(hub.follow(source, after or (0,)), hub.settings.send_timeout_s)
