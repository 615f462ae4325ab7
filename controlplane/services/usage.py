"""What runs have used of a cluster: GPU-hours and CPU-core-hours, by user, size or label.

Counted is the time from when an attempt's pods first ran to its end, times what its pods hold, whatever became of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Float, Select, and_, case, cast, func, literal, select

from controlplane.services.context import Context
from controlplane.store.tables import Attempt, Label, Run

HOUR_S = 3600.0


@dataclass(frozen=True)
class Used:
    """What the runs of one `key` (a user, a size, a label's value; None: runs without that label) have used."""

    key: str | None
    gpu_hours: float
    cpu_core_hours: float
    runs: int
    attempts: int


@dataclass(frozen=True)
class Usage:
    """What was used from `since` (None: ever) to `until`, by key, the most first, and altogether."""

    by: str
    since: datetime | None
    until: datetime
    items: list[Used]
    total: Used


def usage(context: Context, by: str = "user", *, since: datetime | None = None, until: datetime | None = None) -> Usage:
    """Usage by `user`, by `size` or by `label:KEY`; what still runs counts up to now."""
    now = context.clock()
    last = min(until.timestamp(), now) if until else now
    wanted = _grouped(by, since.timestamp() if since else 0.0, last, now)
    with context.store.read() as session:
        items = [Used(*row) for row in session.execute(wanted)]
    ordered = sorted(items, key=lambda one: (-one.gpu_hours, -one.cpu_core_hours, one.key or ""))
    return Usage(by, since, datetime.fromtimestamp(last, UTC), ordered, _total(ordered))


def _grouped(by: str, since: float, until: float, now: float) -> Select[Any, float, float, int, int]:
    end = func.coalesce(Attempt.finished_at, now)
    first, last = _larger(Attempt.started_at, since), -_larger(-end, -until)
    hours = _larger(last - first, 0.0) / HOUR_S  # the clock may have been set back meanwhile
    key, label = _key(by)
    wanted = (
        select(
            key, func.sum(hours * Run.gpus), func.sum(hours * Run.cpus), func.count(func.distinct(Run.id)), func.count()
        )
        .select_from(Run)
        .join(Attempt, Attempt.run_id == Run.id)
        .where(Attempt.started_at.is_not(None), Attempt.started_at < until, end > since)
        .group_by(key)
    )
    return wanted if label is None else wanted.outerjoin(Label, and_(Label.run_id == Run.id, Label.key == label))


def _key(by: str) -> tuple[Any, str | None]:
    """The column of the groups, and the label whose values they are, if it is one."""
    kind, _, label = by.partition(":")
    return {"user": Run.principal, "size": Run.size, "label": Label.value}[kind], label or None


def _larger(one: ColumnElement[float] | Any, other: float) -> ColumnElement[float]:
    bound = cast(literal(other), Float(53))
    return case((one > bound, one), else_=bound)


def _total(items: list[Used]) -> Used:
    def added() -> Iterator[Any]:
        for name in ("gpu_hours", "cpu_core_hours", "runs", "attempts"):
            yield sum(getattr(one, name) for one in items)

    return Used(None, *added())
