"""Lists of runs: filtered, searched, a page at a time, and as quick with years of history as with none.

A page's runs are found in indexes alone; only then are their rows read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from sqlalchemy import ColumnElement, Select, and_, exists, or_, select
from sqlalchemy.orm import aliased

from controlplane.domain.names import RUN_ID, folded
from controlplane.services.context import Context
from controlplane.services.cursors import cursor_after, id_before
from controlplane.services.runs import whole
from controlplane.services.views import Page, view_run
from controlplane.store.columns import Seen
from controlplane.store.tables import Label, Run

LARGEST_PAGE = 500


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which runs: all conditions hold at once; within `phases`, `sizes` and `clusters`, one of them.

    Every word of `query` is part of the name or a label, or the start of the id. `since` is the first moment of asking
    that counts and `until` the first that does not. `deleted`: those that are hidden, and no others.
    """

    phases: Collection[str] = ()
    sizes: Collection[str] = ()
    clusters: Collection[str] = ()
    name: str | None = None
    query: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    since: datetime | None = None
    until: datetime | None = None
    pinned: bool | None = None
    deleted: bool = False


def list_runs(context: Context, wanted: Filter, *, cursor: str | None = None, limit: int = 50) -> Page:
    """A page of runs, newest first. Raises BadCursor.

    Pages are cut by key: runs made meanwhile neither repeat nor hide one. Clusters go by the names that runs show, so
    those of one that was taken out are still found.
    """
    if context.cluster.name in wanted.clusters:  # whose runs are stored under no name
        wanted = replace(wanted, clusters=[*wanted.clusters, ""])
    limit = max(1, min(limit, LARGEST_PAGE))
    ids = page_of(wanted, id_before(cursor, RUN_ID) if cursor else None, limit + 1)
    with context.store.read() as session:
        rows = session.execute(whole().where(Run.id.in_(ids)).order_by(Run.id.desc())).all()
        namespace = context.cluster.traits().namespace
        runs = [view_run(run, name, context.cluster.name, namespace) for run, name in rows[:limit]]
    more = len(rows) > limit
    return Page(runs, cursor_after(runs[-1].id) if more else None)


def page_of(wanted: Filter, before: str | None, most: int) -> Select[str]:
    """The ids of the first runs of a filter, newest first, that come after `before`."""
    ids, place = select(Run.id).where(*_conditions(wanted)), Run.id
    labels = list(wanted.labels.items())
    if labels:  # the first leads, in the order of its index; the others are looked up
        key, value = labels[0]
        ids = ids.join(Label, and_(Label.run_id == Run.id, Label.key == key, Label.value == value))
        place = Label.run_id
    for key, value in labels[1:]:
        other = aliased(Label)
        ids = ids.where(exists().where(other.run_id == Run.id, other.key == key, other.value == value))
    return (ids.where(place < before) if before else ids).order_by(place.desc()).limit(most)


def _conditions(wanted: Filter) -> Iterator[ColumnElement[bool]]:
    yield Seen(Run.task_of).is_(None)
    yield Run.deleted_at.is_not(None) if wanted.deleted else Run.deleted_at.is_(None)
    if wanted.phases:
        yield Seen(Run.phase).in_([*wanted.phases])
    if wanted.sizes:
        yield Run.size.in_([*wanted.sizes])
    if wanted.clusters:
        yield Run.cluster.in_([*wanted.clusters])
    if wanted.name is not None:
        yield Run.name == wanted.name
    if wanted.since is not None:
        yield Run.created_at >= wanted.since.timestamp()
    if wanted.until is not None:
        yield Run.created_at < wanted.until.timestamp()
    if wanted.pinned is not None:
        yield Run.pinned.is_(wanted.pinned)
    for word in (wanted.query or "").split():
        yield _told_of(word)


def _told_of(word: str) -> ColumnElement[bool]:
    part = word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return or_(Run.search.like(f"%{folded(part)}%", escape="\\"), Run.id.like(f"{part}%", escape="\\"))
