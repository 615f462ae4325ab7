"""The guarded writes: every change of a run's phase, attempts, outbox rows and events goes through here.

Services and reconciler call these inside `Store.write`. A move names what it may leave, so that a terminal phase is
written once and whatever is stored first wins. What should happen when is not decided here.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import bindparam, delete, select, update

from controlplane.domain.destinations import ANNOUNCED
from controlplane.domain.errors import NotFound
from controlplane.domain.names import object_name, token_hash
from controlplane.domain.phases import Transition
from controlplane.faults import fault
from controlplane.store.rows import add_rows
from controlplane.store.tables import Attempt, Event, Notice, Outbox, Run
from controlplane.store.writer import Transaction

CREATE, DELETE = "create", "delete"
FIRST_EVENT = 1


def get_run(transaction: Transaction, run_id: str) -> Run:
    """The run's row, which no other process changes before this transaction has ended. Raises NotFound."""
    run = transaction.session.get(Run, run_id, populate_existing=True, with_for_update={"key_share": True})
    if run is None:
        raise NotFound("run", run_id)
    return run


def get_attempt(transaction: Transaction, run_id: str, number: int) -> Attempt:
    """The attempt's row. Raises NotFound."""
    attempt = transaction.session.get(Attempt, (run_id, number), populate_existing=True)
    if attempt is None:
        raise NotFound("attempt", number)
    return attempt


def move(
    transaction: Transaction,
    run_id: str,
    transition: Transition,
    now: float,
    *,
    reason: str | None = None,
    message: str | None = None,
    **columns: Any,
) -> bool:
    """Make a transition, if the run is where it may leave from; whether it was made. Leaves an event.

    `columns` are other columns of the run to set with it. Entering a terminal phase frees the run's name and folder.
    """
    values: dict[str, Any] = {"phase": transition.target, "reason": reason, "message": message, **columns}
    if transition.target.terminal:
        values |= {"finished_at": now, "live_name": None, "live_folder": None}
    session = transaction.session
    before = session.execute(select(Run.phase, Run.reason, Run.message).where(Run.id == run_id)).one()
    guarded = update(Run).where(
        Run.id == run_id, Run.phase.in_([*transition.sources]), Run.desired.in_([*transition.desired])
    )
    changed = session.connection().execute(guarded.values(**values)).rowcount == 1
    if changed and tuple(before) != (transition.target, reason, message):
        seq = add_event(transaction, run_id, now=now, **_event_of(transition, before.phase, reason, message))
        if transition.target in ANNOUNCED and transition.target != before.phase:
            session.add(Notice(run_id=run_id, seq=seq))
            session.flush()
    return changed


@dataclass(frozen=True)
class Move:
    """A transition of one run, with `columns` of the run to set with it. It enters no terminal phase."""

    run_id: str
    transition: Transition
    reason: str | None = None
    message: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])


def move_all(transaction: Transaction, moves: Sequence[Move], now: float) -> set[str]:
    """As `move`, of many runs for little more than one costs; the ids of those whose transition was made."""
    found = {row.id: row for row in locked(transaction, [one.run_id for one in moves])}
    made, events = list[Move](), list[dict[str, Any]]()
    notices = list[dict[str, Any]]()
    for one in moves:
        before, after = found.get(one.run_id), one.transition
        assert not after.target.terminal
        if before is None or before.phase not in after.sources or before.desired not in after.desired:
            continue
        made.append(one)
        if (before.phase, before.reason, before.message) != (after.target, one.reason, one.message):
            event = _event_of(one.transition, before.phase, one.reason, one.message)
            events.append({"run_id": one.run_id, "seq": before.last_event + 1, "attempt": before.attempt, **event})
            if after.target in ANNOUNCED and after.target != before.phase:
                notices.append({"run_id": one.run_id, "seq": before.last_event + 1})
    connection, counted = transaction.session.connection(), {event["run_id"] for event in events}
    for names, several in _alike(made):
        values: dict[str, Any] = {name: bindparam(f"new_{name}") for name in names} | {
            "last_event": Run.last_event + bindparam("more")
        }
        given = [
            {"id_": one.run_id, "more": int(one.run_id in counted), **{f"new_{name}": value for name, value in new}}
            for one, new in several
        ]
        connection.execute(update(Run.__table__).where(Run.id == bindparam("id_")).values(values), given)  # type: ignore[arg-type]
    if events:
        _insert_events(transaction, [{"time": now, **event} for event in events])
    if notices:
        add_rows(connection, Notice.__table__, notices)
    return {one.run_id for one in made}


def locked(transaction: Transaction, run_ids: Sequence[str]) -> Sequence[Any]:
    """Where these runs are now; no other process changes them before this transaction has ended."""
    wanted = select(Run.id, Run.phase, Run.desired, Run.attempt, Run.reason, Run.message, Run.last_event)
    wanted = wanted.where(Run.id.in_(run_ids)).order_by(Run.id).with_for_update(key_share=True)
    return transaction.session.connection().execute(wanted).all()


def _alike(moves: Sequence[Move]) -> Iterator[tuple[tuple[str, ...], list[tuple[Move, list[tuple[str, Any]]]]]]:
    """Moves that set the same columns, with what each sets."""
    kinds: dict[tuple[str, ...], list[tuple[Move, list[tuple[str, Any]]]]] = {}
    for one in moves:
        new = {"phase": one.transition.target, "reason": one.reason, "message": one.message, **one.columns}
        kinds.setdefault(tuple(new), []).append((one, [*new.items()]))
    return iter(kinds.items())


def _event_of(transition: Transition, before: str, reason: str | None, message: str | None) -> dict[str, Any]:
    told = f"{reason}: {message}" if reason and message else reason or message or transition.trigger
    data = {"phase": str(transition.target), "from": before, "reason": reason, "transition": transition.number}
    return {"kind": "phase", "message": told, "data": data}


def add_event(
    transaction: Transaction, run_id: str, kind: str, message: str, now: float, *, data: dict[str, Any] | None = None
) -> int:
    """Add an event with the run's next number, which is returned, and tell the run's listeners after the commit."""
    counted = update(Run).where(Run.id == run_id).values(last_event=Run.last_event + 1)
    seq, attempt = transaction.session.connection().execute(counted.returning(Run.last_event, Run.attempt)).one()
    _tell(transaction, run_id, seq, attempt, time=now, kind=kind, message=message, data=data or {})
    return int(seq)


def add_first_events(transaction: Transaction, rows: Sequence[Mapping[str, Any]]) -> None:
    """The events of runs that this transaction inserts, with `last_event` FIRST_EVENT: nobody else can count on."""
    _insert_events(transaction, [{"seq": FIRST_EVENT, "kind": "created", **row} for row in rows])


def _tell(transaction: Transaction, run_id: str, seq: int, attempt: int, **told: Any) -> None:
    _insert_events(transaction, [{"run_id": run_id, "seq": seq, "attempt": attempt, **told}])


def _insert_events(transaction: Transaction, rows: list[dict[str, Any]]) -> None:
    add_rows(transaction.session.connection(), Event.__table__, rows)
    transaction.touched.update(row["run_id"] for row in rows)


@dataclass(frozen=True)
class NewAttempt:
    """An attempt about to be stored, with a secret of its own; `resumed_from`: the step of its checkpoint."""

    run_id: str
    number: int
    object_name: str
    priority: str | None
    created_at: float
    due_at: float
    resumed_from: int | None = None
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))

    def row(self) -> dict[str, Any]:
        """What is stored of it."""
        own = {name: getattr(self, name) for name in OWN}
        return {**own, "token_hash": token_hash(self.token), "phase": "queued", "pods": []}

    def creation(self) -> dict[str, Any]:
        """The outbox row that makes its object."""
        due = {"object_name": self.object_name, "token": self.token, "due_at": self.due_at, "tries": 0}
        return {"run_id": self.run_id, "attempt": self.number, "op": CREATE, **due}


OWN = ("run_id", "number", "object_name", "priority", "created_at", "resumed_from")


def add_attempts(transaction: Transaction, attempts: Sequence[NewAttempt]) -> None:
    """Attempts, and the outbox rows that make their objects."""
    connection = transaction.session.connection()
    add_rows(connection, Attempt.__table__, [one.row() for one in attempts])
    add_rows(connection, Outbox.__table__, [one.creation() for one in attempts])
    transaction.work = True


def add_attempt(
    transaction: Transaction, run: Run, number: int, now: float, due_at: float, *, resumed_from: int | None = None
) -> None:
    """The run's next attempt, from the checkpoint at step `resumed_from`, and the outbox row that makes its object."""
    name, priority = object_name(run.name, run.id, number), priority_of(run.spec, run.resolved)
    add_attempts(transaction, [NewAttempt(run.id, number, name, priority, now, due_at, resumed_from)])
    transaction.session.connection().execute(update(Run).where(Run.id == run.id).values(attempt=number))


def priority_of(spec: Mapping[str, Any], resolved: Mapping[str, Any]) -> str:
    """A run's priority, its own or the installation's, as both are stored; empty for none, which an attempt keeps."""
    given = [(one.get("scheduling") or {}).get("priority") for one in (spec, resolved)]
    return next((str(one) for one in given if one), "")


def request_deletion(transaction: Transaction, attempt: Attempt, now: float) -> None:
    """Have the attempt's object ended, whether it was made, is being made, or never will be."""
    fault("deletion decided")
    session = transaction.session
    session.execute(
        delete(Outbox).where(Outbox.run_id == attempt.run_id, Outbox.attempt == attempt.number, Outbox.op == CREATE)
    )
    if session.get(Outbox, (attempt.run_id, attempt.number, DELETE)) is None:
        session.add(
            Outbox(
                run_id=attempt.run_id,
                attempt=attempt.number,
                op=DELETE,
                object_name=attempt.object_name,
                uid=attempt.uid,
                due_at=now,
                tries=0,
            )
        )
        session.flush()
    transaction.work = True


def withdraw(transaction: Transaction, run_id: str, attempt: int) -> None:
    """Take back the creation of an object that was not begun."""
    transaction.session.execute(
        delete(Outbox).where(Outbox.run_id == run_id, Outbox.attempt == attempt, Outbox.op == CREATE)
    )


def settle(transaction: Transaction, run_id: str, attempt: int, op: str, lease: str) -> bool:
    """Remove a row that was worked off, if the lease still stands; whether it did."""
    removed = transaction.session.connection().execute(
        delete(Outbox).where(Outbox.run_id == run_id, Outbox.attempt == attempt, Outbox.op == op, Outbox.lease == lease)
    )
    return removed.rowcount == 1
