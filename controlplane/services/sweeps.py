"""Sweeps: asked for, listed, looked at as one table, cancelled. All runs of a sweep are stored in one transaction.

How many of them go at once is the reconciler's to see to, from what is stored. This writes `desired` and never `phase`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, undefer

from controlplane.domain.errors import FolderInUse, InvalidSpec, NotFound, Problem
from controlplane.domain.names import SWEEP_ID, fingerprint, new_sweep_id, suffix
from controlplane.domain.phases import LIVE, Desired
from controlplane.domain.sweeps import WAITS_FOR_SWEEP, SweepSpec, values_of, waits_for_sweep
from controlplane.faults import fault
from controlplane.services import runs
from controlplane.services.context import Context
from controlplane.services.cursors import cursor_after, id_before
from controlplane.services.insertion import Request, insert, run_of_key
from controlplane.services.views import PointView, SweepPage, SweepTable, SweepView, moment
from controlplane.store.moves import add_event
from controlplane.store.tables import Run, Sweep
from controlplane.store.writer import Transaction

LARGEST_PAGE = 500
MOST_REPORTED = 100  # problems of a body; every point could have the same ones
IN_PROGRESS = ("step", "steps", "loss", "best_loss", "val_loss", "best_val_loss", "tokens_per_s")


def create_sweep(
    context: Context, asked: SweepSpec, *, idempotency_key: str | None = None, principal: str = runs.LOCAL
) -> tuple[SweepTable, bool]:
    """Store a sweep with a run for each point; returns it, and whether an earlier request with the key made it.

    Raises InvalidSpec, with pointers into the sweep's body, NameInUse, FolderInUse and KeyReused: then nothing is made.
    """
    body_hash = fingerprint({"sweep": asked.model_dump(mode="json", exclude_unset=True)})
    asker = runs.Asker(principal, idempotency_key, body_hash)
    with context.store.read() as session:
        made = _made_before(session, asker)
    if made:
        return get(context, made), True
    sweep_id = new_sweep_id()
    name = asked.name or f"sweep-{suffix(sweep_id)}"
    patches = asked.patches()
    requests = _requests(context, asked, patches, asker, (sweep_id, name))
    sweep = Sweep(
        id=sweep_id,
        name=name,
        principal=principal,
        parallelism=asked.parallelism,
        spec=asked.spec,
        points=patches,
        created_at=round(context.clock(), 6),
    )
    stored, replayed = context.store.write(lambda transaction: _insert(transaction, sweep, requests, asker))
    fault("sweep stored")
    return get(context, stored), replayed


def get(context: Context, sweep_id: str) -> SweepTable:
    """The sweep with this id, or the newest of this name, with the table of its runs. Raises NotFound."""
    with context.store.read() as session:
        sweep = _found(session, sweep_id)
        rows = session.scalars(select(Run).where(Run.sweep_id == sweep.id).order_by(Run.sweep_point)).all()
        phases = _counted(session, [sweep.id]).get(sweep.id, {})
        return SweepTable(**vars(_view(sweep, phases)), items=[_point(row, sweep.points) for row in rows])


def list_sweeps(context: Context, *, cursor: str | None = None, limit: int = 50) -> SweepPage:
    """A page of sweeps, newest first. Raises BadCursor."""
    limit = max(1, min(limit, LARGEST_PAGE))
    wanted = select(Sweep).order_by(Sweep.id.desc()).limit(limit + 1)
    if cursor is not None:
        wanted = wanted.where(Sweep.id < id_before(cursor, SWEEP_ID))
    with context.store.read() as session:
        found = session.scalars(wanted).all()
        counted = _counted(session, [one.id for one in found[:limit]])
        views = [_view(one, counted.get(one.id, {})) for one in found[:limit]]
    more = len(found) > limit
    return SweepPage(views, cursor_after(views[-1].id) if more else None)


def cancel_sweep(context: Context, sweep_id: str, *, actor: str = runs.LOCAL) -> SweepTable:
    """Want the end of every run of a sweep that goes on; one that has ended stays as it is. Raises NotFound."""
    with context.store.read() as session:
        sweep_id = _found(session, sweep_id).id

    def job(transaction: Transaction) -> None:
        session, now = transaction.session, context.clock()
        goes_on = (Run.sweep_id == sweep_id, Run.phase.in_([*LIVE]), Run.desired != Desired.CANCELLED)
        live = session.scalars(select(Run.id).where(*goes_on).with_for_update(key_share=True)).all()
        if not live:
            return
        wanted = {"desired": Desired.CANCELLED, "revision": Run.revision + 1}
        session.execute(update(Run).where(Run.id.in_(live)).values(**wanted))
        session.execute(update(Sweep).where(Sweep.id == sweep_id).values(cancelled_at=now))
        for run_id in live:
            told = "a cancel of its sweep was asked for"
            add_event(transaction, run_id, "cancel", told, now, data={"actor": actor})
        transaction.work = True
        fault("sweep cancel wanted")

    context.store.write(job)
    return get(context, sweep_id)


def _requests(
    context: Context, asked: SweepSpec, patches: list[dict[str, Any]], asker: runs.Asker, sweep: tuple[str, str]
) -> list[Request]:
    """The runs of all points, as they would be stored. Raises InvalidSpec with what is wrong with any of them."""
    problems: dict[Problem, None] = {}
    requests: list[Request] = []
    folders: dict[str, int] = {}
    sweep_id, name = sweep
    for at, patch in enumerate(patches):
        try:
            spec = asked.run_spec(patch).model_copy(update={"name": f"{name}-{at}"})
            request = runs.request_of(context, spec, asker if at == 0 else replace(asker, key=None))
            _ensure_own_folder(folders, at, request.folder)
        except InvalidSpec as error:
            problems |= dict.fromkeys(asked.blamed(at, patch, problem) for problem in error.problems)
            continue
        waits = (
            (WAITS_FOR_SWEEP, waits_for_sweep(name, asked.parallelism)) if at >= asked.parallelism else request.waits
        )
        requests.append(replace(request, sweep=(sweep_id, at), waits=waits))
    if problems:
        raise InvalidSpec([*problems][:MOST_REPORTED])
    return requests


def _ensure_own_folder(folders: dict[str, int], at: int, folder: str) -> None:
    other = folders.setdefault(folder, at)
    if other != at:
        detail = f"got {folder!r}, which point {other} writes to; allowed: a folder for each point, or none"
        raise InvalidSpec([Problem("/checkpoint/uri", FolderInUse.code, detail)])


def _insert(transaction: Transaction, sweep: Sweep, requests: list[Request], asker: runs.Asker) -> tuple[str, bool]:
    """The sweep with all of its runs, or nothing at all; its key is that of its first run."""
    session = transaction.session
    if made := _made_before(session, asker):
        return made, True
    for answer in insert(transaction, [(request, sweep.created_at) for request in requests]):
        if isinstance(answer, Exception):
            raise answer
    session.merge(sweep)
    session.flush()
    fault("sweep inserted")
    return sweep.id, False


def _made_before(session: Session, asker: runs.Asker) -> str | None:
    """The sweep that an earlier request with this key made. Raises KeyReused where that had another body."""
    first = run_of_key(session, asker.principal, asker.key, asker.body_hash)
    return session.scalar(select(Run.sweep_id).where(Run.id == first)) if first else None


def _found(session: Session, sweep_id: str) -> Sweep:
    by_id = bool(SWEEP_ID.fullmatch(sweep_id))
    wanted = select(Sweep).where(Sweep.id == sweep_id if by_id else Sweep.name == sweep_id)
    found = session.scalar(wanted.options(undefer(Sweep.points)).order_by(Sweep.id.desc()).limit(1))
    if found is None:
        raise NotFound("sweep", sweep_id)
    return found


def _counted(session: Session, sweeps: list[str]) -> dict[str, dict[str, int]]:
    wanted = select(Run.sweep_id, Run.phase, func.count()).where(Run.sweep_id.in_(sweeps))
    counted: dict[str, dict[str, int]] = {}
    for sweep_id, phase, several in session.execute(wanted.group_by(Run.sweep_id, Run.phase)):
        counted.setdefault(str(sweep_id), {})[phase] = several
    return counted


def _view(sweep: Sweep, phases: dict[str, int]) -> SweepView:
    created = moment(sweep.created_at)
    assert created is not None
    return SweepView(
        id=sweep.id,
        name=sweep.name,
        user=sweep.principal,
        parallelism=sweep.parallelism,
        spec=sweep.spec,
        phases=phases,
        ended=not phases.keys() & LIVE,
        created_at=created,
        cancelled_at=moment(sweep.cancelled_at),
    )


def _point(run: Run, points: list[Any]) -> PointView:
    known, at = run.progress or {}, run.sweep_point or 0
    return PointView(
        point=at,
        values=values_of(points[at]),
        run=run.id,
        name=run.name,
        phase=run.phase,
        reason=run.reason,
        message=run.message,
        **{key: known.get(key) for key in IN_PROGRESS},
    )
