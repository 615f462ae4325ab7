"""What was told of runs, and to whom: the log of deliveries."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import or_, select

from controlplane.services.context import Context
from controlplane.services.views import moment
from controlplane.store.tables import Delivery, Event, Run

LARGEST_PAGE = 500


@dataclass(frozen=True)
class NotificationView:
    """One event of a run, told to one destination."""

    run: str
    name: str
    event: int
    phase: str
    destination: str
    state: str
    tries: int
    answer: str | None
    created_at: datetime
    due_at: datetime | None
    finished_at: datetime | None


def notifications(
    context: Context, *, run_id: str | None = None, state: str | None = None, limit: int = 50
) -> list[NotificationView]:
    """The newest deliveries, of the runs with one id or name, or in one state, where that is asked for."""
    wanted = select(Delivery, Event.data, Run.name).join(Run, Run.id == Delivery.run_id)
    wanted = wanted.join(Event, (Event.run_id == Delivery.run_id) & (Event.seq == Delivery.seq))
    if run_id is not None:
        wanted = wanted.where(or_(Run.id == run_id, Run.name == run_id))
    if state is not None:
        wanted = wanted.where(Delivery.state == state)
    newest = wanted.order_by(Delivery.created_at.desc(), Delivery.run_id.desc(), Delivery.seq.desc())
    with context.store.read() as session:
        found = session.execute(newest.limit(min(limit, LARGEST_PAGE))).all()
    return [_view(row, data["phase"], name) for row, data, name in found]


def _view(row: Delivery, phase: str, name: str) -> NotificationView:
    return NotificationView(
        run=row.run_id,
        name=name,
        event=row.seq,
        phase=phase,
        destination=row.destination,
        state=row.state,
        tries=row.tries,
        answer=row.answer,
        created_at=datetime.fromtimestamp(row.created_at, UTC),
        due_at=moment(row.due_at),
        finished_at=moment(row.finished_at),
    )
