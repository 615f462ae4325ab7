"""The checkpoints of a run: those in its folder, where that is on this machine, else the last one that it told of.

A further one is asked for by an event, of which rank 0 hears in the answer to what it posts: on every cluster alike.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from controlplane import runfolder
from controlplane.domain.errors import NotReporting
from controlplane.domain.phases import Desired, Phase
from controlplane.services import runs
from controlplane.services.context import Context
from controlplane.services.views import CheckpointsView, CheckpointView, RunView, moment
from controlplane.store.moves import add_event, get_run
from controlplane.store.points import SAVE, newest_seq
from controlplane.store.tables import Event, Run
from controlplane.store.writer import Transaction


def checkpoints(context: Context, run_id: str) -> CheckpointsView:
    """Its complete checkpoints, oldest first. Raises NotFound."""
    run = runs.get(context, run_id)
    folder = Path(run.folder)
    if folder.is_absolute():
        found = [
            CheckpointView(one.step, one.attempt, moment(one.time), one.size, one.ranks, str(one.folder))
            for one in runfolder.checkpoints(folder)
        ]
        return CheckpointsView(run.folder, seen=True, items=found)
    last = [] if run.checkpoint_step is None else [CheckpointView(run.checkpoint_step, None, None, None, None, None)]
    return CheckpointsView(run.folder, seen=False, items=last)


def request_checkpoint(context: Context, run_id: str, *, actor: str = runs.LOCAL) -> RunView:
    """Ask a run's trainer for a checkpoint now; it goes on. Asked again before its next report, it is asked once.

    Raises NotFound, and NotReporting where no trainer would hear of it.
    """
    run_id = runs.get(context, run_id).id

    def job(transaction: Transaction) -> None:
        session, run = transaction.session, get_run(transaction, run_id)
        newest = newest_seq(session, run_id, run.attempt)
        if (state := _deaf(run, reported=newest > 0)) is not None:
            raise NotReporting(run_id, state, run.checkpoint_step)
        last = _last_request(session, run_id, run.attempt)
        if last is None or last.data["point"] != newest:
            data = {"actor": actor, "point": newest}
            add_event(transaction, run_id, SAVE, f"{actor} asked for a checkpoint", context.clock(), data=data)

    context.store.write(job)
    return runs.of_id(context, run_id)


def requested(session: Session, run_id: str, attempt: int) -> int:
    """The number of the newest checkpoint that was asked for of an attempt; 0 where there is none."""
    return session.scalar(select(func.max(Event.seq)).where(*_requests(run_id, attempt))) or 0


def _deaf(run: Run, *, reported: bool) -> str | None:
    """Why nobody would hear a request; None where somebody would."""
    if run.phase == Phase.RUNNING and run.desired != Desired.RUNNING:
        return f"is to be {run.desired}"
    if run.phase != Phase.RUNNING:
        return f"is {run.phase}"
    return None if reported else "has not reported a step yet"


def _last_request(session: Session, run_id: str, attempt: int) -> Event | None:
    wanted = select(Event).where(*_requests(run_id, attempt)).order_by(Event.seq.desc())
    return session.scalars(wanted.limit(1)).first()


def _requests(run_id: str, attempt: int) -> tuple[ColumnElement[bool], ...]:
    return Event.run_id == run_id, Event.attempt == attempt, Event.kind == SAVE
