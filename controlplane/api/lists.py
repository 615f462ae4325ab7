"""Lists of runs: filtered, searched, a page at a time."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import AwareDatetime, Field

from controlplane.api.body import JsonRoute
from controlplane.api.problems import FieldProblem, invalid
from controlplane.api.runs import Run, show
from controlplane.api.views import Services, View
from controlplane.domain.complaints import shorten
from controlplane.domain.fields import LABEL_KEY, LABEL_VALUE, Namespace
from controlplane.domain.phases import Phase
from controlplane.domain.spec import SizeName
from controlplane.services import lists
from controlplane.services.views import Page

router = APIRouter(tags=["runs"], route_class=JsonRoute)


class RunPage(View):
    """A page of runs, newest first."""

    items: list[Run] = Field(description="The runs.")
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page.", examples=[None])


PhaseFilter = Annotated[list[Phase] | None, Query(description="Only runs in these phases.", examples=[["running"]])]
LabelFilter = Annotated[
    list[str] | None, Query(description="Only runs with these labels, each key=value.", examples=[["team=lm"]])
]
Name = Annotated[str | None, Query(description="Only runs of this name.", examples=["first-try"], max_length=100)]
SizeFilter = Annotated[list[SizeName] | None, Query(description="Only runs of these sizes.", examples=[["tiny"]])]
ClusterFilter = Annotated[
    list[Namespace] | None, Query(description="Only runs on these clusters (GET /clusters).", examples=[["local"]])
]
Words = Annotated[
    str | None,
    Query(
        description="Words, each part of the name or of a label (key=value), or the start of the id.",
        examples=["first team=lm"],
        max_length=512,
    ),
]
Since = Annotated[
    AwareDatetime | None,
    Query(description="Only runs asked for at this moment or later.", examples=["2026-11-24T00:00:00Z"]),
]
Until = Annotated[
    AwareDatetime | None,
    Query(description="Only runs asked for before this moment.", examples=["2026-12-01T00:00:00Z"]),
]
Pinned = Annotated[bool | None, Query(description="Only runs that are pinned, or that are not.", examples=[True])]
Limit = Annotated[int, Query(description="Most runs of a page.", examples=[50], ge=1, le=lists.LARGEST_PAGE)]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before.", examples=[None], max_length=128)]


async def _filter(
    phase: PhaseFilter = None,
    size: SizeFilter = None,
    cluster: ClusterFilter = None,
    label: LabelFilter = None,
    name: Name = None,
    q: Words = None,
    since: Since = None,
    until: Until = None,
    pinned: Pinned = None,
) -> lists.Filter:
    return lists.Filter(
        phases=phase or (),
        sizes=size or (),
        clusters=cluster or (),
        labels=_labels(label or []),
        name=name,
        query=q,
        since=since,
        until=until,
        pinned=pinned,
    )


@router.get("/runs", summary="List runs")
def list_runs(
    context: Services, wanted: Annotated[lists.Filter, Depends(_filter)], limit: Limit = 50, cursor: Cursor = None
) -> RunPage:
    """Runs, newest first, a page at a time. Every condition that is given holds."""
    return show_page(lists.list_runs(context, wanted, cursor=cursor, limit=limit))


def show_page(page: Page) -> RunPage:
    """A page as the API shows it."""
    return RunPage(items=[show(run) for run in page.runs], next_cursor=page.next_cursor)


def _labels(given: list[str]) -> dict[str, str]:
    """Labels of a query. Raises Refusal for one that is no `key=value`, or that no run could have."""
    found: dict[str, str] = {}
    for label in given:
        key, equals, value = label.partition("=")
        if not (equals and re.match(LABEL_KEY, key) and re.match(LABEL_VALUE, value)):
            detail = f"got {shorten(repr(label))}; allowed: key=value, such as team=lm"
            raise invalid([FieldProblem(pointer="?label", code="invalid_label", detail=detail)])
        found[key] = value
    return found
