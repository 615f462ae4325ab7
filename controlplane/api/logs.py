"""Logs: what a rank wrote, as text or as it is written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Query, Response
from starlette.responses import StreamingResponse

from controlplane.api.attempts import AttemptNumber
from controlplane.api.body import JsonRoute
from controlplane.api.problems import FieldProblem, Refusal
from controlplane.api.streams import Batch, EventStream, Message, Position, Source, parse_position, stream_responses
from controlplane.api.views import LastEventId, RunRef, Services, Streams
from controlplane.domain.phases import Phase
from controlplane.services import attempts, runs
from controlplane.services.context import Context
from controlplane.services.logs import logs

router = APIRouter(tags=["runs"], route_class=JsonRoute)
TEXT = "text/plain; charset=utf-8"

Rank = Annotated[int, Query(description="The rank, over all nodes.", examples=[0], ge=0, lt=1 << 20)]
Tail = Annotated[int | None, Query(description="Only the last lines.", examples=[100], ge=0, le=100_000)]


@router.get(
    "/runs/{run}/logs",
    summary="Show a rank's log",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/plain": {"example": "step 120/200 | loss 3.1234 | lr 4.10e-03\n"}}}},
)
def text(run: RunRef, context: Services, rank: Rank = 0, attempt: AttemptNumber = None, tail: Tail = None) -> Response:
    """What a rank has written so far in an attempt, whole or its last lines; readable after its pods are gone."""
    run_id = _run_of_rank(context, run, rank)
    number = attempts.attempt(context, run_id, attempt).attempt
    first = logs(context, run_id, attempt=number, rank=rank, tail=tail)

    def chunks() -> Iterator[str]:
        chunk, start = first, -1
        while chunk.offset > start:
            yield "".join(f"{line}\n" for line in chunk.lines)
            if tail is not None:
                return
            start, chunk = chunk.offset, logs(context, run_id, attempt=number, rank=rank, offset=chunk.offset)

    return StreamingResponse(chunks(), media_type=TEXT)


@router.get(
    "/runs/{run}/logs/stream",
    summary="Follow a rank's log",
    response_class=EventStream,
    responses=stream_responses("logs"),
)
def stream(
    run: RunRef,
    context: Services,
    hub: Streams,
    rank: Rank = 0,
    attempt: AttemptNumber = None,
    tail: Tail = None,
    last_event_id: LastEventId = None,
) -> Response:
    """A rank's lines as they are written, from `attempt` on over every later one, until the run has ended.

    A message's data is `{"attempt", "rank", "lines"}`, its id the attempt and the byte to go on from.
    """
    run_id = _run_of_rank(context, run, rank)
    after = parse_position(last_event_id, 2)
    first: list[Message] = []
    if after is None:
        number = attempts.attempt(context, run_id, attempt).attempt
        chunk = logs(context, run_id, attempt=number, rank=rank, tail=tail or 0)
        after = (number, chunk.offset if tail is not None else 0)
        first = [_message(after, rank, chunk.lines)] if chunk.lines else []
    source = Source(
        ("logs", run_id, rank),
        lambda position, _: _read(context, run_id, rank, position),
        lambda changed: context.store.signals.listen(run_id, changed),
        poll_s=hub.settings.poll_s,
    )
    return EventStream(hub.follow(source, after, first), hub.settings.send_timeout_s)


def _run_of_rank(context: Context, run: str, rank: int) -> str:
    """The id of a run that has this rank. Raises NotFound, and Refusal with the ranks that there are."""
    found = runs.get(context, run)
    last = int(found.resolved["world_size"]) - 1
    if rank > last:
        detail = f"got {rank}; allowed: {f'0 to {last}, the ranks' if last else '0, the only rank'} of run {found.id}"
        raise Refusal("not_found", detail, [FieldProblem(pointer="?rank", code="no_such_rank", detail=detail)])
    return found.id


def _read(context: Context, run_id: str, rank: int, after: Position) -> Batch:
    """The next lines, or the next attempt's first place, or the end."""
    run = runs.get(context, run_id)
    attempt, offset = after
    chunk = logs(context, run_id, attempt=attempt, rank=rank, offset=offset)
    here = (attempt, chunk.offset)
    if chunk.lines:
        return Batch([_message(here, rank, chunk.lines)], here, ended=False)
    if chunk.ended and chunk.offset == offset and attempt < run.attempt:
        return Batch([], (attempt + 1, 0), ended=False)
    return Batch([], here, ended=chunk.ended and chunk.offset == offset and Phase(run.phase).terminal)


def _message(position: Position, rank: int, lines: list[str]) -> Message:
    return Message(position, "log", {"attempt": position[0], "rank": rank, "lines": lines})
