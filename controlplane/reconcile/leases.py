"""Rows of the outbox taken, and what came of them stored: many in one transaction, for little more than one costs.

A row's lease says who works it off. Whoever finds it gone was overtaken, by a cancel or by another process: nothing is
stored of what it made, which is found and ended as a leftover.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence

from sqlalchemy import bindparam, delete, or_, select, update
from sqlalchemy.orm import aliased

from controlplane.domain.phases import SUBMIT, SUBMITTED
from controlplane.faults import fault
from controlplane.store.moves import CREATE, Move, move_all
from controlplane.store.tables import Attempt, Outbox, Run
from controlplane.store.writer import Transaction

KEY = (Outbox.run_id == bindparam("run"), Outbox.attempt == bindparam("number"), Outbox.op == bindparam("what"))
UPSTREAM = aliased(Run)
ATTEMPT = (Attempt.run_id == bindparam("run"), Attempt.number == bindparam("of"))


def lease(transaction: Transaction, rows: Sequence[Outbox], now: float, until: float) -> list[Outbox]:
    """Take those rows that are still free. A creation is taken only as transition 1: no cancel came before it."""
    connection = transaction.session.connection()
    free = or_(Outbox.leased_until.is_(None), Outbox.leased_until < now)
    wanted = select(Outbox.run_id, Outbox.attempt, Outbox.op).where(Outbox.run_id.in_([row.run_id for row in rows]))
    there = {tuple(one) for one in connection.execute(wanted.where(free).with_for_update(key_share=True))}
    rows = [row for row in rows if (row.run_id, row.attempt, row.op) in there]
    moved = move_all(transaction, [Move(row.run_id, SUBMIT) for row in rows if row.op == CREATE], now)
    taken = [row for row in rows if row.op != CREATE or row.run_id in moved]
    begun = [{"run": row.run_id, "of": row.attempt} for row in taken if row.op == CREATE]
    if begun:
        connection.execute(update(Attempt.__table__).where(*ATTEMPT).values(phase=SUBMIT.target), begun)  # type: ignore[arg-type]
    for run_id, number, step in _left_by_upstreams(transaction, moved):
        own = (Attempt.run_id == run_id, Attempt.number == number)
        connection.execute(update(Attempt).where(*own).values(resumed_from=step))
    fault("row taken")
    for row in taken:
        row.lease, row.leased_until = secrets.token_hex(8), until
    values = {"lease": bindparam("new"), "leased_until": until}
    given = [{**_key(row), "new": row.lease} for row in taken]
    if given:
        connection.execute(update(Outbox.__table__).where(*KEY).values(values), given)  # type: ignore[arg-type]
    return taken


def submitted(transaction: Transaction, made: Sequence[tuple[Outbox, str]], now: float) -> None:
    """Transition 3 of those rows whose lease still stands, each with its object's uid; empty: unknown."""
    connection = transaction.session.connection()
    wanted = select(Outbox.lease).where(Outbox.lease.in_([row.lease for row, _ in made]))
    held = set(connection.scalars(wanted.with_for_update()))
    ours = [(row, uid) for row, uid in made if row.lease in held]
    if not ours:
        return
    connection.execute(delete(Outbox.__table__).where(*KEY), [_key(row) for row, _ in ours])  # type: ignore[arg-type]
    values = {"uid": bindparam("new"), "submitted_at": now, "phase": SUBMITTED.target}
    given = [{"run": row.run_id, "of": row.attempt, "new": uid or None} for row, uid in ours]
    connection.execute(update(Attempt.__table__).where(*ATTEMPT).values(values), given)  # type: ignore[arg-type]
    move_all(transaction, [Move(row.run_id, SUBMITTED) for row, _ in ours], now)


def _key(row: Outbox) -> dict[str, object]:
    return {"run": row.run_id, "number": row.attempt, "what": row.op}


def _left_by_upstreams(transaction: Transaction, run_ids: set[str]) -> Iterator[tuple[str, int, int]]:
    """Of runs that come after another one, the attempts that have no step yet, and that at which they start."""
    wanted = (
        select(Run.id, Run.attempt, UPSTREAM.checkpoint_step)
        .join(UPSTREAM, UPSTREAM.id == Run.after_id)
        .join(Attempt, (Attempt.run_id == Run.id) & (Attempt.number == Run.attempt))
        .where(Run.id.in_(run_ids), Attempt.resumed_from.is_(None), UPSTREAM.checkpoint_step.is_not(None))
    )
    for one in transaction.session.execute(wanted):
        yield one.id, one.attempt, one.checkpoint_step
