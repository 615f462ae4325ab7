"""Retention: what ended long ago is deleted, and what was deleted long ago is purged, where the installation says so.

What is pinned stays, what somebody has restored stays, and what a live run needs waits for its end. `due` shows what
would go, and `enforce` takes its word.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from controlplane.domain.errors import ClusterSilent, NeededByRun, NotFound
from controlplane.domain.retention import DAY_S, Retention
from controlplane.services import changes, purges
from controlplane.services.context import Context
from controlplane.store.tables import Event, Run

log = logging.getLogger(__name__)
ACTOR = "retention"
SHOWN = 1_000


@dataclass(frozen=True)
class Due:
    """Ids of the runs that are due to be deleted and to be purged, those longest due first, at most 1,000 of each."""

    deletions: list[str]
    purges: list[str]


def due(context: Context) -> Due:
    """What has been kept for long enough."""
    kept, now = context.retention, context.clock()
    with context.store.read() as session:
        return Due(_deletions(session, kept, now), _purges(session, kept, now))


def enforce(context: Context) -> None:
    """Delete and purge what is due; what cannot go yet is due again next time. Raises StoreError."""
    found = due(context)
    for run_id in found.deletions:
        with suppress(NotFound):  # somebody was quicker
            changes.delete_run(context, run_id, actor=ACTOR)
    for run_id in found.purges:
        try:
            purges.purge(context, run_id, actor=ACTOR)
        except NotFound:
            continue
        except (NeededByRun, ClusterSilent, OSError) as error:
            log.info("run %s is purged later: %s", run_id, error)


def _deletions(session: Session, kept: Retention, now: float) -> list[str]:
    if not kept.delete_after_days:
        return []
    restored = exists().where(Event.run_id == Run.id, Event.kind == "restore")
    ended = Run.finished_at < now - kept.delete_after_days * DAY_S
    wanted = select(Run.id).where(ended, Run.deleted_at.is_(None), Run.pinned.is_(False), Run.task_of.is_(None))
    return [*session.scalars(wanted.where(~restored).order_by(Run.finished_at).limit(SHOWN))]


def _purges(session: Session, kept: Retention, now: float) -> list[str]:
    if not kept.purge_after_days:
        return []
    wanted = select(Run.id).where(Run.deleted_at < now - kept.purge_after_days * DAY_S, Run.pinned.is_(False))
    return [*session.scalars(wanted.where(Run.task_of.is_(None)).order_by(Run.deleted_at).limit(SHOWN))]
