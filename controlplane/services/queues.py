"""Queues: who waits in them, and whether anybody is begun. Pausing and draining change nothing of what runs."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from controlplane.domain.errors import NotFound
from controlplane.domain.phases import LIVE, Phase
from controlplane.domain.queues import DEFAULT_QUEUE, QueueState
from controlplane.faults import fault
from controlplane.services.context import Context
from controlplane.services.runs import LOCAL
from controlplane.services.views import moment
from controlplane.store.tables import Queue, Run
from controlplane.store.writer import Transaction

log = logging.getLogger(__name__)
WAITING = frozenset({Phase.QUEUED, Phase.SUSPENDED})


@dataclass(frozen=True)
class QueueView:
    """A queue: its runs that are `waiting` to be begun and those `under_way`; `drained`: it is closed, and none is."""

    name: str
    state: str
    note: str | None
    changed_at: datetime | None
    changed_by: str | None
    waiting: int
    under_way: int

    @property
    def drained(self) -> bool:
        """Whether nothing is under way, and nothing will be before it is opened."""
        return self.state != QueueState.OPEN and self.under_way == 0


def queues(context: Context) -> list[QueueView]:
    """Every queue that runs have named, or that was opened or closed, by name."""
    with context.store.read() as session:
        rows = {row.name: row for row in session.scalars(select(Queue))}
        counted = _counted(session)
        names = {*_known(context), *rows, *session.scalars(select(Run.queue).distinct())}
        return [_view(name, rows.get(name), counted) for name in sorted(names)]


def set_state(
    context: Context, name: str, state: QueueState, *, note: str | None = None, actor: str = LOCAL
) -> QueueView:
    """Open, pause or drain a queue, from the next look on. Raises NotFound for one that no run has named."""

    def job(transaction: Transaction) -> None:
        session = transaction.session
        row = session.get(Queue, name)
        if row is None:
            if name not in _known(context) and session.scalar(select(Run.id).where(Run.queue == name).limit(1)) is None:
                raise NotFound("queue", name)
            row = Queue(name=name)
        row.state, row.note, row.changed_at, row.changed_by = state, note, context.clock(), actor
        session.add(row)
        session.flush()
        pending = select(Run.id).where(Run.queue == name, Run.phase == Phase.PENDING)
        transaction.touched.update(session.scalars(pending))  # they may be taken back
        transaction.work = True
        fault("queue changed")

    context.store.write(job)
    fault("queue stored")
    log.info("queue %s is %s by %s%s", name, state, actor, f": {note}" if note else "")
    return next(one for one in queues(context) if one.name == name)


def _known(context: Context) -> set[str]:
    """Queues that are there before any run."""
    return {DEFAULT_QUEUE, context.queue or DEFAULT_QUEUE}


def _counted(session: Session) -> dict[tuple[str, bool], int]:
    """Live runs by queue, and by whether they wait."""
    wanted = select(Run.queue, Run.phase, func.count()).where(Run.phase.in_([*LIVE])).group_by(Run.queue, Run.phase)
    counted: dict[tuple[str, bool], int] = {}
    for queue, phase, several in session.execute(wanted):
        key = queue, phase in WAITING
        counted[key] = counted.get(key, 0) + several
    return counted


def _view(name: str, row: Queue | None, counted: dict[tuple[str, bool], int]) -> QueueView:
    return QueueView(
        name=name,
        state=row.state if row else QueueState.OPEN,
        note=row.note if row else None,
        changed_at=moment(row.changed_at) if row else None,
        changed_by=row.changed_by if row else None,
        waiting=counted.get((name, True), 0),
        under_way=counted.get((name, False), 0),
    )
