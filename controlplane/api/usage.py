"""Usage: the GPU-hours and CPU-core-hours of runs."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AfterValidator, AwareDatetime, Field

from controlplane.api.body import JsonRoute
from controlplane.api.problems import FieldProblem, invalid
from controlplane.api.views import CREATED, FINISHED, Services, View
from controlplane.domain.complaints import shorten
from controlplane.services import usage

router = APIRouter(tags=["usage"], route_class=JsonRoute)

BY = re.compile(r"^(user|size|label:[-A-Za-z0-9_./]{1,320})$", re.ASCII)


def _by(value: str) -> str:
    if not BY.fullmatch(value):
        raise ValueError(
            f"got {shorten(repr(value))}; allowed: user, size, or label:KEY with the key of a label, such as label:team"
        )
    return value


By = Annotated[
    str,
    Query(
        description="What to sum by: user, size, or the values of a label, as label:KEY.",
        examples=["label:team"],
        json_schema_extra={"maxLength": 326, "pattern": BY.pattern},
    ),
    AfterValidator(_by),  # which says what is allowed, where a pattern shows itself
]
Since = Annotated[
    AwareDatetime | None, Query(description="From when on; ever unless given.", examples=["2026-11-01T00:00:00Z"])
]
Until = Annotated[
    AwareDatetime | None, Query(description="Up to when; now unless given.", examples=["2026-12-01T00:00:00Z"])
]


class Used(View):
    """What some runs have used."""

    key: str | None = Field(description="Whose it is; null: runs without that label, or all.", examples=["lm"])
    gpu_hours: float = Field(description="GPUs held, times hours.", examples=[1536.0])
    cpu_core_hours: float = Field(description="CPU cores held, times hours.", examples=[12288.0])
    runs: int = Field(description="Runs that held something.", examples=[12])
    attempts: int = Field(description="Attempts of theirs.", examples=[15])


class Usage(View):
    """What was used in a stretch of time."""

    by: str = Field(description="What it is summed by.", examples=["label:team"])
    since: datetime | None = Field(description="From when on; null: ever.", examples=[CREATED])
    until: datetime = Field(description="Up to when.", examples=[FINISHED])
    items: list[Used] = Field(description="By key, the most GPU-hours first.")
    total: Used = Field(description="All of it.")


@router.get("/usage", summary="Show what runs have used")
def show(context: Services, by: By = "user", since: Since = None, until: Until = None) -> Usage:
    """GPU-hours and CPU-core-hours from when pods first ran to their attempt's end, whatever became of it."""
    if since and since > (until or datetime.now(UTC)):
        end = until.isoformat() if until else "now"
        detail = f"got {since.isoformat()}; allowed: a time before until, which is {end}"
        raise invalid([FieldProblem(pointer="?since", code="invalid_value", detail=detail)])
    return Usage.model_validate(usage.usage(context, by, since=since, until=until))
