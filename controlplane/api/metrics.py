"""Metrics: a run's curve, as it comes in and as it is looked at."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from controlplane.api.body import LARGEST_INTEGER, JsonRoute
from controlplane.api.streams import Batch, EventStream, Message, Position, Source, parse_position, stream_responses
from controlplane.api.views import Authorization, LastEventId, RunRef, Services, Streams, View, bearer
from controlplane.domain.errors import Unauthorized
from controlplane.domain.fields import WORDS
from controlplane.domain.phases import Phase
from controlplane.services import attempts, metrics, runs

router = APIRouter(tags=["runs"], route_class=JsonRoute)

LATEST = 1e11
MOST_POINTS = 5000  # of one report
EXAMPLE = {"seq": 120, "step": 120, "time": 1795518320.5, "loss": 3.12, "lr": 0.0041, "tokens_per_s": 35120.0}
NAME = r"[A-Za-z_][A-Za-z0-9_.]{0,63}"
KEYS = f"^{NAME}(,{NAME}){{0,63}}$"
WORDS[f"^{NAME}$"] = "a letter or '_', then up to 63 letters, digits, '_' and '.'"
WORDS[KEYS] = "up to 64 names of values, such as loss, with commas between"
Name = Annotated[str, Field(pattern=f"^{NAME}$")]


def _number(value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"got {str(value)[:40]!r}; allowed: a number or null")
    return value


Number = Annotated[Any, AfterValidator(_number), WithJsonSchema({"type": ["number", "null"]})]

Keys = Annotated[
    str | None,
    Query(
        description="Values to show, with commas between; all unless given.", examples=["loss,val_loss"], pattern=KEYS
    ),
]
Downsample = Annotated[
    int | None, Query(description="Most points; ends and extremes stay.", examples=[500], ge=2, le=100_000)
]


class NewPoint(BaseModel):
    """A point of a curve: its place, and any further numbers by name."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[Name, Number] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride] - pydantic's own way

    seq: int = Field(description="Grows with each point of the attempt.", examples=[120], ge=1, le=LARGEST_INTEGER)
    step: int = Field(description="The step.", examples=[120], ge=0, le=LARGEST_INTEGER)
    time: float = Field(description="When, in seconds since 1970.", examples=[1795518320.5], ge=0, le=LATEST)


class NewPoints(BaseModel):
    """Points of one attempt."""

    model_config = ConfigDict(extra="forbid", strict=True)

    attempt: int = Field(description="The attempt that measured them.", examples=[1], ge=1, le=1 << 31)
    points: list[NewPoint] = Field(
        description="The points, oldest first.", examples=[[EXAMPLE]], max_length=MOST_POINTS
    )


class Acknowledged(View):
    """What is stored."""

    acknowledged: int = Field(description="The highest `seq` that is stored: go on after it.", examples=[120])
    save: int = Field(
        description="Grows with each checkpoint that is asked for of this attempt; 0 where none was.", examples=[0]
    )
    wait_s: float = Field(
        description="Seconds to leave before the next report: the more, the more runs report.", examples=[0.01]
    )


class Curve(View):
    """A run's curve."""

    points: list[dict[str, Any]] = Field(
        description="One point a step, of the latest attempt that reached it.", examples=[[{**EXAMPLE, "attempt": 1}]]
    )


@router.post("/runs/{run}/metrics", summary="Add metric points")
def add(run: RunRef, body: NewPoints, context: Services, authorization: Authorization = "") -> Acknowledged:
    """What rank 0 reports, under its own token. Adding a point twice is adding it once."""
    if attempts.authenticate(context, run, bearer(authorization)) != body.attempt:
        raise Unauthorized
    points = [point.model_dump() for point in body.points]
    heard = metrics.add_metrics(context, run, body.attempt, points)
    return Acknowledged(acknowledged=heard.seq, save=heard.save, wait_s=context.pace.heard(run))


@router.get("/runs/{run}/metrics", summary="Show a run's curve")
def curve(run: RunRef, context: Services, keys: Keys = None, downsample: Downsample = None) -> Curve:
    """One point a step, of the latest attempt that reached it, thinned where that is asked for."""
    wanted = keys.split(",") if keys else ()
    return Curve(points=metrics.curve(context, run, keys=wanted, downsample=downsample))


@router.get(
    "/runs/{run}/metrics/stream",
    summary="Follow a run's curve",
    response_class=EventStream,
    responses=stream_responses("points"),
)
def stream(run: RunRef, context: Services, hub: Streams, last_event_id: LastEventId = None) -> Response:
    """Points as they come in, until the run has ended. A message's id is the point's attempt and `seq`."""
    run_id = runs.get(context, run).id

    def read(after: Position, limit: int) -> Batch:
        terminal = Phase(runs.get(context, run_id).phase).terminal
        found = metrics.points_after(context, run_id, attempt=after[0], seq=after[1], limit=limit)
        messages = [Message((point["attempt"], point["seq"]), "point", point) for point in found]
        return Batch(messages, messages[-1].position if messages else after, terminal and not messages)

    source = Source(("metrics", run_id), read, lambda changed: context.store.signals.listen(run_id, changed))
    after = parse_position(last_event_id, 2, metrics.last_point(context, run_id))
    return EventStream(hub.follow(source, after or (0, 0)), hub.settings.send_timeout_s)
