"""Logs: what a rank wrote, as text, as it is written, or searched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Depends, Query, Response
from pydantic import AwareDatetime, Field
from starlette.responses import StreamingResponse

from controlplane.api.attempts import AttemptNumber
from controlplane.api.body import JsonRoute
from controlplane.api.problems import FieldProblem, Refusal, invalid
from controlplane.api.streams import Batch, EventStream, Message, Position, Source, parse_position, stream_responses
from controlplane.api.views import LastEventId, RunRef, Services, Streams, View
from controlplane.domain.fields import WORDS
from controlplane.domain.phases import Phase
from controlplane.services import attempts, log_search, runs
from controlplane.services.context import Context
from controlplane.services.log_search import LARGEST_PAGE, BadPattern, Span
from controlplane.services.logs import logs
from controlplane.services.views import LogMatches as FoundMatches

router = APIRouter(tags=["runs"], route_class=JsonRoute)
TEXT = "text/plain; charset=utf-8"

OF_RANK = Query(description="The rank, over all nodes.", examples=[0], ge=0, lt=1 << 20)
Rank = Annotated[int, OF_RANK]
AnyRank = Annotated[int | None, OF_RANK]
Tail = Annotated[int | None, Query(description="Only the last lines.", examples=[100], ge=0, le=100_000)]


class LogMatch(View):
    """A line of a log that holds what was searched."""

    attempt: int = Field(description="The attempt that it was written in.", examples=[1])
    rank: int = Field(description="The rank that wrote it.", examples=[0])
    line: int = Field(description="Its number in the log of its node, from 1, all ranks counted.", examples=[118])
    offset: int = Field(
        description="Its first byte in that log. `Last-Event-ID: ATTEMPT.OFFSET` has the log's stream begin there.",
        examples=[6512],
    )
    text: str = Field(
        description="The line; of a long one what stands around what was searched.",
        examples=["step 118/200 | loss 3.1271 | lr 4.10e-03"],
    )


class LogMatches(View):
    """A page of lines that hold what was searched, attempt by attempt and node by node from the first on."""

    items: list[LogMatch] = Field(description="The lines.")
    next_cursor: str | None = Field(
        description="Give it as `cursor` to search on; null where all was looked through. "
        "A page without lines may have one: a request looks through 64 MiB at most.",
        examples=[None],
    )
    searched_bytes: int = Field(description="Bytes looked through for this page, about.", examples=[77_824])


ONE_LINE = r"^[^\r\n]*$"
WORDS[ONE_LINE] = "text of one line"
Search = Annotated[
    str | None,
    Query(
        description="Answer with the lines that hold this text, as JSON: of every attempt unless `attempt` is given, "
        "of every rank unless `rank` is.",
        examples=["loss 3.12"],
        min_length=1,
        max_length=500,
        pattern=ONE_LINE,
    ),
]
IgnoreCase = Annotated[
    bool | None, Query(description="Whether a search finds letters in either case.", examples=[None])
]
Regex = Annotated[
    bool | None,
    Query(description="Whether `search` is a regular expression, of RE2's syntax, of one line.", examples=[None]),
]
Since = Annotated[
    AwareDatetime | None,
    Query(
        description="With `search`: no lines of before this moment. A line that begins with a time (ISO 8601, UTC "
        "without a zone) has that, any other that of its attempt.",
        examples=[None],
    ),
]
Until = Annotated[
    AwareDatetime | None, Query(description="With `search`: none of this moment or later.", examples=[None])
]
Limit = Annotated[
    int | None, Query(description="Most lines that a search finds; 100.", examples=[None], ge=1, le=LARGEST_PAGE)
]
Cursor = Annotated[
    str | None, Query(description="`next_cursor` of a search's page before.", examples=[None], max_length=128)
]


class Asked(NamedTuple):
    """What is searched for."""

    search: str | None = None
    ignore_case: bool | None = None
    regex: bool | None = None
    since: datetime | None = None
    until: datetime | None = None
    limit: int | None = None
    cursor: str | None = None


NOTHING = Asked()


async def _asked(
    search: Search = None,
    ignore_case: IgnoreCase = None,
    regex: Regex = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = None,
    cursor: Cursor = None,
) -> Asked:
    return Asked(search, ignore_case, regex, since, until, limit, cursor)


@router.get(
    "/runs/{run}/logs",
    summary="Show or search a rank's log",
    response_class=StreamingResponse,
    responses={
        200: {"model": LogMatches, "content": {"text/plain": {"example": "step 120/200 | loss 3.1234 | lr 4.10e-03\n"}}}
    },
)
def text(
    run: RunRef,
    context: Services,
    rank: AnyRank = None,
    attempt: AttemptNumber = None,
    tail: Tail = None,
    asked: Annotated[Asked, Depends(_asked)] = NOTHING,
) -> Response:
    """What a rank (0) has written so far in an attempt (the newest), whole or its last lines, as text.

    With `search`, the lines of all ranks and attempts that hold a text, as JSON. Readable after its pods are gone.
    """
    run_id = _run_of_rank(context, run, rank or 0)
    if asked.search is not None:
        _refuse({"tail": tail}, "left out where `search` is given: `limit` bounds what is found")
        found = _found(context, run_id, attempt, rank, asked)
        items = [LogMatch.model_validate(match) for match in found.matches]
        page = LogMatches(items=items, next_cursor=found.next_cursor, searched_bytes=found.looked)
        return Response(page.model_dump_json(), media_type="application/json")
    _refuse(asked._asdict(), "left out without `search`")
    return StreamingResponse(_lines(context, run_id, rank or 0, attempt, tail), media_type=TEXT)


def _found(context: Context, run: str, attempt: int | None, rank: int | None, asked: Asked) -> FoundMatches:
    """A page of a search. Raises Refusal for what is no regular expression."""
    assert asked.search is not None
    try:
        return log_search.search(
            context,
            run,
            asked.search,
            attempt=attempt,
            rank=rank,
            ignore_case=bool(asked.ignore_case),
            regex=bool(asked.regex),
            span=Span(asked.since, asked.until),
            limit=asked.limit or 100,
            cursor=asked.cursor,
        )
    except BadPattern as error:
        detail = f"got {asked.search!r}; allowed: a regular expression of RE2's syntax ({error})"
        raise invalid([FieldProblem(pointer="?search", code="invalid_value", detail=detail)]) from None


def _refuse(given: Mapping[str, object], allowed: str) -> None:
    """Raises Refusal where one of these parameters was given."""
    wrong = [
        FieldProblem(pointer=f"?{name}", code="not_together", detail=f"got {value}; allowed: {allowed}")
        for name, value in given.items()
        if value is not None
    ]
    if wrong:
        raise invalid(wrong)


def _lines(context: Context, run_id: str, rank: int, attempt: int | None, tail: int | None) -> Iterator[str]:
    """The text in pieces. What is not there is refused before the first one."""
    number = attempts.attempt(context, run_id, attempt).attempt
    first = logs(context, run_id, attempt=number, rank=rank, tail=tail)

    def chunks() -> Iterator[str]:
        chunk, start = first, -1
        while chunk.offset > start:
            yield "".join(f"{line}\n" for line in chunk.lines)
            if tail is not None:
                return
            start, chunk = chunk.offset, logs(context, run_id, attempt=number, rank=rank, offset=chunk.offset)

    return chunks()


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
    after = _position(last_event_id, runs.get(context, run_id).attempt)
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


def _position(last_event_id: str | None, newest: int) -> Position | None:
    """Where a Last-Event-ID has the stream go on. Raises Refusal, also for an attempt that the run has not had."""
    after = parse_position(last_event_id, 2)
    if after is not None and not 1 <= after[0] <= newest:
        detail = f"got attempt {after[0]}; allowed: 1 to {newest}, those that the run has had"
        raise invalid([FieldProblem(pointer="header:last-event-id", code="invalid_value", detail=detail)])
    return after


def _read(context: Context, run_id: str, rank: int, after: Position) -> Batch:
    """The next lines, or the next attempt's first place, or the end."""
    attempt, offset = after
    chunk = logs(context, run_id, attempt=attempt, rank=rank, offset=offset)
    here = (attempt, chunk.offset)
    if chunk.lines:
        return Batch([_message(here, rank, chunk.lines)], here, ended=False)
    if not chunk.ended or chunk.offset != offset:
        return Batch([], here, ended=False)
    run = runs.get(context, run_id)  # only now: a log is looked at several times a second
    if attempt < run.attempt:
        return Batch([], (attempt + 1, 0), ended=False)
    return Batch([], here, ended=Phase(run.phase).terminal)


def _message(position: Position, rank: int, lines: list[str]) -> Message:
    return Message(position, "log", {"attempt": position[0], "rank": rank, "lines": lines})
