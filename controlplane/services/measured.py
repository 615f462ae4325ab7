"""What plans said beside what steps took: of one run as far as it got, and of those that have ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from controlplane.domain.measured import SEEN, Comparison, compare
from controlplane.services import runs
from controlplane.services.context import Context
from controlplane.services.views import moment
from controlplane.store.history import points_of
from controlplane.store.tables import Run

MOST = 1000  # runs that are listed


@dataclass(frozen=True)
class Finished(Comparison):
    """The comparison of a run that has ended, as it was recorded; `gpu` and `layout` are those of its plan."""

    run: str
    name: str
    size: str
    finished_at: datetime | None
    gpu: str
    layout: dict[str, Any]


def compared(context: Context, run_id: str) -> Comparison:
    """The comparison of a run, as far as it got. Raises NotFound."""
    run = runs.get(context, run_id)
    with context.store.read() as session:
        recorded = session.scalar(select(Run.measured).where(Run.id == run.id))
        return Comparison(**recorded) if recorded else compare(run.resolved, points_of(session, run.id, keys=SEEN))


def finished(context: Context, limit: int = MOST) -> list[Finished]:
    """Runs whose steps were planned and measured, the newest first."""
    wanted = select(Run.id, Run.name, Run.size, Run.finished_at, Run.resolved, Run.measured)
    there = wanted.where(Run.measured.is_not(None), Run.deleted_at.is_(None)).order_by(Run.id.desc())
    with context.store.read() as session:
        rows = session.execute(there.limit(min(limit, MOST))).all()
    return [_finished(row) for row in rows]


def _finished(row: Any) -> Finished:
    planned = row.resolved["planned"]
    return Finished(
        **row.measured,
        run=row.id,
        name=row.name,
        size=row.size,
        finished_at=moment(row.finished_at),
        gpu=planned["gpu"],
        layout=planned["layout"],
    )
