"""Purging: a deleted run goes for good, with all that it has left. What goes is shown first, by the same count.

Files go before rows, points before the run's row: whatever is cut off can be begun again. A folder that its user named
is left alone. One that only pods see is removed by one of them, which is waited for by asking again.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

from sqlalchemy import Select, Table, delete, func, or_, select

from controlplane.clusters.base import ClusterError
from controlplane.domain.errors import ClusterSilent, NeededByRun, NotFound
from controlplane.domain.phases import LIVE
from controlplane.domain.storage import uri_of
from controlplane.faults import fault
from controlplane.services import removals
from controlplane.services.context import Context
from controlplane.services.runs import LOCAL
from controlplane.services.views import RemainsView
from controlplane.store.tables import Attempt, Base, Event, MetricBlock, MetricPoint, Run
from controlplane.store.writer import Transaction

log = logging.getLogger(__name__)
POINTS = 5_000  # of one transaction: other writes wait for it


def remains(context: Context, run_id: str) -> RemainsView:
    """What a purge would remove of a deleted run and of the tasks on it. Raises NotFound."""
    run = _deleted(context, run_id)
    with context.store.read() as session:
        every = _family(run_id)
        tasks = [*session.scalars(every.where(Run.id != run_id))]

        def count(table: type[Attempt | Event | MetricPoint]) -> int:
            return session.scalar(select(func.count()).select_from(table).where(table.run_id.in_(every))) or 0

        packed = session.scalar(select(func.sum(MetricBlock.points)).where(MetricBlock.run_id.in_(every))) or 0
        counted = count(Attempt), count(Event), count(MetricPoint) + packed
        folder = _own_folder(context, run)
        shared = session.scalar(select(Run.id).where(Run.folder == run.folder, Run.id != run_id).limit(1))
        afar, removal = shared is None and removals.ours(session, run), removals.under_way(session, run_id)
    here = folder if folder is not None and shared is None and folder.is_dir() else None
    size = sum(path.lstat().st_size for path in here.rglob("*") if not path.is_dir()) if here else 0
    goes = here is not None or afar
    return RemainsView(run_id, run.name, tasks, *counted, run.folder, folder_removed=goes, size=size, removal=removal)


def purge(context: Context, run_id: str, *, keep_folder: bool = False, actor: str = LOCAL) -> RemainsView:
    """Remove a deleted run for good; what went. Its events go too: the log alone tells who did it.

    With a `removal` in the answer nothing has gone yet: that run removes the folder, and is to be waited for before
    this is called again. With `keep_folder` the folder stays where it is.

    Raises NotFound, NeededByRun while a live run begins from its folder or works on it, and ClusterSilent.
    """
    left = remains(context, run_id)
    if keep_folder:
        left = replace(left, folder_removed=False, size=0)
    _ensure_unneeded(context, left)
    if left.removal or _waits_for_a_pod(context, left):
        return replace(left, removal=left.removal or removals.ask(context, run_id, actor=actor))
    with context.store.read() as session:
        family = select(Attempt.object_name, Run.cluster).join(Run).where(Attempt.run_id.in_(_family(run_id)))
        objects = session.execute(family).all()
    try:
        for name, cluster in objects:
            context.at(cluster).cluster.forget(name)
    except ClusterError as error:
        raise ClusterSilent(str(error)) from None
    fault("logs removed")
    for each in (run_id, *left.tasks):
        (context.home / "outputs" / f"{each}.tar").unlink(missing_ok=True)
    if left.folder_removed and _here(left):
        shutil.rmtree(left.folder)
    fault("folder removed")
    while context.store.write(lambda transaction: _thin(transaction, run_id)):
        pass
    context.store.write(lambda transaction: _remove(transaction, run_id))
    told = "run %s (%s) is purged by %s: %d attempts, %d points"
    log.info(told, run_id, left.name, actor, left.attempts, left.points)
    return left


def _deleted(context: Context, run_id: str) -> Run:
    with context.store.read() as session:
        run = session.get(Run, run_id)
    if run is None or run.deleted_at is None:
        raise NotFound("deleted run", run_id)
    return run


def _family(run_id: str) -> Select[str]:
    """The ids of a run and of the tasks on it."""
    return select(Run.id).where(or_(Run.id == run_id, Run.task_of == run_id))


def _own_folder(context: Context, run: Run) -> Path | None:
    """The run's folder where we have made it: one that its user named is its user's."""
    ours = context.home / "runs" / run.id
    return ours if run.folder == str(ours) else None


def _here(left: RemainsView) -> bool:
    return left.folder.startswith("/")


def _waits_for_a_pod(context: Context, left: RemainsView) -> bool:
    with context.store.read() as session:
        return left.folder_removed and not _here(left) and not removals.done(session, left.id)


def _ensure_unneeded(context: Context, left: RemainsView) -> None:
    with context.store.read() as session:
        live = select(Run.id, Run.resolved, Run.task_of, Run.after_id).where(Run.phase.in_([*LIVE]))
        others = live.where(func.coalesce(Run.task, "") != removals.TASK)
        for run_id, resolved, task_of, after in session.execute(others):
            begins = uri_of(resolved["config"].get("start_from") or "")
            if left.id in {task_of, after} or (left.folder_removed and f"{begins}/".startswith(f"{left.folder}/")):
                raise NeededByRun(left.id, run_id)


def _thin(transaction: Transaction, run_id: str) -> bool:
    """Remove some of its points; whether there were any."""
    place = (MetricPoint.run_id, MetricPoint.attempt, MetricPoint.seq)
    some = transaction.session.execute(
        select(*place).where(MetricPoint.run_id.in_(_family(run_id))).limit(POINTS)
    ).all()
    for each, attempt in {(row.run_id, row.attempt) for row in some}:
        seqs = [row.seq for row in some if (row.run_id, row.attempt) == (each, attempt)]
        here = (MetricPoint.run_id == each, MetricPoint.attempt == attempt)
        transaction.session.execute(
            delete(MetricPoint).where(*here, MetricPoint.seq >= min(seqs), MetricPoint.seq <= max(seqs))
        )
    fault("points removed")
    return bool(some)


def _remove(transaction: Transaction, run_id: str) -> None:
    """Every row of every table that tells of it, and then the run itself; void where it was restored meanwhile."""
    session = transaction.session
    run = session.get(Run, run_id, with_for_update=True)
    if run is None or run.deleted_at is None:
        return
    family = [*session.scalars(_family(run_id))]
    for table in reversed(Base.metadata.sorted_tables):
        if _tells_of_runs(table):
            session.execute(delete(table).where(table.c.run_id.in_(family)))
    session.execute(delete(Run).where(Run.id.in_(family)))
    fault("rows removed")


def _tells_of_runs(table: Table) -> bool:
    return "run_id" in table.c
