"""Writes decisions: one guarded transaction each, void where the run has moved on meanwhile. It decides no verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Text, bindparam, func, update

from controlplane.domain.names import compact
from controlplane.domain.phases import FAILURE, RESTART, TAKEN_BACK, Phase
from controlplane.domain.queues import REASONS
from controlplane.faults import fault
from controlplane.reconcile.decide import Decision, Look, stored
from controlplane.reconcile.pace import Pace
from controlplane.reconcile.verdicts import REQUEUED, Handling, Verdict
from controlplane.runfolder import last_checkpoint, metric_lines
from controlplane.store.moves import (
    Move,
    add_attempt,
    add_event,
    get_attempt,
    get_run,
    locked,
    move,
    move_all,
    request_deletion,
    withdraw,
)
from controlplane.store.points import add_points, newest_seq
from controlplane.store.store import Ledger
from controlplane.store.tables import Attempt, Run
from controlplane.store.writer import Transaction

BATCH = 2000  # leftover points of one transaction
IN_PLACE = 16  # pods of an attempt, at most, that are stored without the others
T = TypeVar("T")


class Stale(Exception):
    """The run is no longer where the decision was made for."""


def apply(store: Ledger, pace: Pace, look: Look, decision: Decision) -> bool:
    """Store a decision; whether it was still valid. Raises StoreUnavailable, with nothing stored."""
    checkpoint = None
    if decision.ends and Path(look.run.folder).is_absolute():
        read_leftovers(store, look.run, look.attempt)
        checkpoint = last_checkpoint(Path(look.run.folder))
    try:
        _write(store, lambda transaction: _store(transaction, pace, look, decision, checkpoint))
    except Stale:
        return False
    return True


def apply_simple(store: Ledger, seen: Sequence[tuple[Look, Decision]]) -> list[Look]:
    """Store simple decisions together, each if it is still valid; of which looks they were.

    Raises StoreUnavailable, with nothing stored.
    """
    return _write(store, lambda transaction: _store_simple(transaction, seen))


def _write(store: Ledger, job: Callable[[Transaction], T]) -> T:
    fault("decision made")
    result = store.write(job)
    fault("decision stored")
    return result


def read_leftovers(store: Ledger, run: Run, attempt: Attempt) -> None:
    """Take in the points of the attempt's record that were never acknowledged."""
    with store.read() as session:
        after = newest_seq(session, run.id, attempt.number)
    batch: list[dict[str, Any]] = []
    for point in metric_lines(Path(run.folder), attempt.number, after):
        batch.append(point)
        if len(batch) == BATCH:
            _add(store, run, attempt, batch)
            batch = []
    if batch:
        _add(store, run, attempt, batch)


def _add(store: Ledger, run: Run, attempt: Attempt, points: list[dict[str, Any]]) -> None:
    store.write(lambda transaction: add_points(transaction, run.id, attempt.number, points))


def _store(transaction: Transaction, pace: Pace, look: Look, decision: Decision, checkpoint: int | None) -> None:
    run = get_run(transaction, look.run.id)
    if (run.phase, run.desired, run.attempt) != (look.run.phase, look.run.desired, look.run.attempt):
        raise Stale
    attempt = get_attempt(transaction, run.id, run.attempt)
    if decision.pods is not None:
        _tell_of_logs(transaction, attempt, decision.pods, look.now)
        attempt.pods = decision.pods
    if decision.verdict is not None:
        _note(transaction, attempt, decision.verdict, look.now)
    if decision.deletes:
        request_deletion(transaction, attempt, look.now)
    if decision.resumes:
        _resume(transaction, run, decision, look.now)
    elif decision.ends:
        _end(transaction, pace, run, attempt, decision, checkpoint, look.now)
    elif decision.transition is not None:
        _step(transaction, run, attempt, decision, look.now)
    transaction.session.flush()


def _tell_of_logs(transaction: Transaction, attempt: Attempt, pods: list[dict[str, Any]], now: float) -> None:
    """An event for each log whose beginning was given up since the pods were last stored."""
    before = {pod["uid"]: pod.get("log_from", 0) for pod in attempt.pods}
    for pod in pods:
        if (first := pod.get("log_from", 0)) > before.get(pod["uid"], 0):
            told = f"the log of {pod['name']} is longer than --log-keep-bytes: its first {first:,} bytes are given up"
            add_event(transaction, attempt.run_id, "log", told, now, data={"pod": pod["name"], "first_byte": first})


def _store_simple(transaction: Transaction, seen: Sequence[tuple[Look, Decision]]) -> list[Look]:
    rows = locked(transaction, [look.run.id for look, _ in seen])
    now_at = {row.id: (row.phase, row.desired, row.attempt) for row in rows}
    valid = [
        (look, decision)
        for look, decision in seen
        if now_at.get(look.run.id) == (look.run.phase, look.run.desired, look.run.attempt)
    ]
    changes: dict[tuple[tuple[str, ...], tuple[str, ...]], list[dict[str, Any]]] = {}
    moves: list[Move] = []
    for look, decision in valid:
        new: dict[str, Any] = {}
        replaced = dict[str, str]()
        if decision.pods is not None and _in_place(transaction, look):
            replaced = _replaced(look, decision.pods)
        elif decision.pods is not None:
            new["pods"] = _all_pods(transaction, look, decision.pods)
        if decision.transition is not None:
            began = _began(look, decision)
            new |= {"phase": decision.transition.target, "started_at": began or look.attempt.started_at}
            started = {"started_at": look.run.started_at or began}
            moves.append(Move(look.run.id, decision.transition, decision.reason, decision.message, started))
        row = {"run": look.run.id, "of": look.attempt.number, **_new(new), **replaced}
        changes.setdefault((tuple(new), tuple(replaced)), []).append(row)
    which = (Attempt.run_id == bindparam("run"), Attempt.number == bindparam("of"))
    for (names, parts), given in changes.items():
        values: dict[str, Any] = {name: bindparam(f"new_{name}") for name in names}
        if parts:
            values["pods"] = func.json_replace(Attempt.pods, *map(_part, parts))
        transaction.session.connection().execute(update(Attempt.__table__).where(*which).values(values), given)  # type: ignore[arg-type]
    if moves:
        move_all(transaction, moves, valid[0][0].now)
    return [look for look, _ in valid]


def _in_place(transaction: Transaction, look: Look) -> bool:
    """Whether what is new of an attempt's pods is stored without the others."""
    few = look.news is not None and len(look.news) <= IN_PLACE
    return few and transaction.session.connection().dialect.name == "sqlite"


def _replaced(look: Look, pods: list[dict[str, Any]]) -> dict[str, str]:
    """What is put in place of what is stored of these pods: for each where that is, and the pod."""
    assert look.news is not None
    given = dict[str, str]()
    for number, (place, pod) in enumerate(zip(look.news, pods, strict=True)):
        given |= {f"place_{number}": f"$[{place}]", f"pod_{number}": compact(pod)}
    return given


def _part(name: str) -> ColumnElement[Any]:
    """One of these in the statement."""
    value = bindparam(name, type_=Text())
    return func.json(value) if name.startswith("pod_") else value


def _all_pods(transaction: Transaction, look: Look, pods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All pods of the attempt as they are to be stored; where it is not known how they were, lost logs are told of."""
    if look.news is None:
        _tell_of_logs(transaction, look.attempt, pods, look.now)
        return pods
    assert look.job is not None
    return [stored(pod) for pod in look.job.pods]


def _new(values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"new_{name}": value for name, value in values.items()}


def _began(look: Look, decision: Decision) -> float | None:
    """When the attempt began to run, if it has by this decision."""
    if decision.transition is None or decision.transition.target is not Phase.RUNNING:
        return None
    starts = [pod.started_at for pod in look.job.pods if pod.started_at] if look.job else []
    return look.attempt.started_at or (min(starts).timestamp() if starts else look.now)


def _step(transaction: Transaction, run: Run, attempt: Attempt, decision: Decision, now: float) -> None:
    """A transition of a live attempt that is more than `simple`."""
    assert decision.transition is not None
    attempt.phase = decision.transition.target
    transaction.session.flush()
    reason, message = decision.reason, decision.message
    if not move(transaction, run.id, decision.transition, now, reason=reason, message=message):
        raise Stale


def _resume(transaction: Transaction, run: Run, decision: Decision, now: float) -> None:
    """A suspended run goes on with its next attempt, from the last checkpoint."""
    assert decision.transition is not None
    suspended = run.suspended_s + (now - run.suspended_at if run.suspended_at is not None else 0.0)
    if not move(transaction, run.id, decision.transition, now, suspended_at=None, suspended_s=suspended):
        raise Stale
    add_attempt(transaction, run, run.attempt + 1, now, now, resumed_from=run.checkpoint_step)
    fault("resume decided")


def _note(transaction: Transaction, attempt: Attempt, verdict: Verdict, now: float) -> None:
    """Store an attempt's verdict, once."""
    if attempt.reason is not None:
        raise Stale
    attempt.reason, attempt.message = verdict.reason, verdict.message
    attempt.rank, attempt.exit_code, attempt.signal = verdict.rank, verdict.exit_code, verdict.signal
    attempt.step, attempt.last_lines = verdict.step, list(verdict.last_lines)
    attempt.charged = {Handling.FINAL: None, Handling.FREE: False, Handling.CHARGED: True}[verdict.handling]
    data = {"reason": verdict.reason, "handling": str(verdict.handling), "rank": verdict.rank}
    told = f"{verdict.reason}: {verdict.message}"
    add_event(transaction, attempt.run_id, "verdict", told, now, data={**data, "exit_code": verdict.exit_code})
    fault("verdict noted")


def _end(
    transaction: Transaction,
    pace: Pace,
    run: Run,
    attempt: Attempt,
    decision: Decision,
    checkpoint: int | None,
    now: float,
) -> None:
    """The attempt is over: the run ends with it, or goes on with the next one."""
    attempt.finished_at = now
    attempt.started_at = attempt.started_at or _first_start(attempt.pods)
    attempt.pods = [_over(pod, now) for pod in attempt.pods]
    attempt.phase = decision.transition.target if decision.transition else Phase.FAILED
    transaction.session.flush()
    if checkpoint is None:  # the run's storage is not this machine's: what the trainer has told
        checkpoint = run.checkpoint_step
    progressed = checkpoint is not None and checkpoint > (attempt.resumed_from or 0)
    columns: dict[str, Any] = {"started_at": run.started_at or attempt.started_at, "checkpoint_step": checkpoint}
    if decision.transition is not None:
        withdraw(transaction, run.id, attempt.number)
        if decision.transition.target is Phase.SUSPENDED:
            columns["suspended_at"] = now
        reason, message = decision.reason, decision.message
        done = move(transaction, run.id, decision.transition, now, reason=reason, message=message, **columns)
    else:
        done = _restart_or_fail(transaction, pace, run, attempt, now, columns, progressed=progressed)
    if not done:
        raise Stale
    fault("attempt ended")


def _over(pod: dict[str, Any], now: float) -> dict[str, Any]:
    """A pod of an attempt that is over; one that went with its object before it was seen to end has ended, too."""
    if pod["phase"] not in {"Pending", "Running"}:
        return pod
    told = {"reason": "Deleted", "message": "it went with its object: its end was not seen"}
    return {**pod, "phase": "Failed", "finished_at": now, **told}


def _restart_or_fail(
    transaction: Transaction,
    pace: Pace,
    run: Run,
    attempt: Attempt,
    now: float,
    columns: dict[str, Any],
    *,
    progressed: bool,
) -> bool:
    free = 0 if progressed else run.free_restarts_since_checkpoint
    reason, message = attempt.reason, attempt.message
    if attempt.charged is None:
        return move(transaction, run.id, FAILURE, now, reason=reason, message=message, **columns)
    if reason in REASONS.values():
        taken = move(transaction, run.id, TAKEN_BACK, now, reason=reason, message=message, **columns)
        if taken:
            add_attempt(transaction, run, attempt.number + 1, now, now, resumed_from=columns["checkpoint_step"])
        return taken
    if attempt.charged and run.charged_restarts >= run.max_restarts:
        spent = f" (after {run.charged_restarts} of {run.max_restarts} restarts)" if run.max_restarts else ""
        return move(transaction, run.id, FAILURE, now, reason=reason, message=f"{message}{spent}", **columns)
    if not attempt.charged and free >= pace.free_restarts:
        told = f"{free} interruptions without a new checkpoint; the last: {reason}: {message}"
        return move(transaction, run.id, FAILURE, now, reason="NoProgress", message=told, **columns)
    restarts = 1 + (0 if progressed else run.restarts_since_checkpoint)
    counted = {
        "charged_restarts": run.charged_restarts + bool(attempt.charged),
        "restarts_since_checkpoint": restarts,
        "free_restarts_since_checkpoint": free + (not attempt.charged and reason != REQUEUED),
    }
    step, wait = columns["checkpoint_step"], pace.restart_backoff(restarts)
    told = (
        f"{message}; attempt {attempt.number + 1} follows in {wait:g} s from {f'step {step}' if step else 'the start'}"
    )
    moved = move(transaction, run.id, RESTART, now, reason=reason, message=told, **columns, **counted)
    if moved:
        add_attempt(transaction, run, attempt.number + 1, now, now + wait, resumed_from=step)
        fault("restart decided")
    return moved


def _first_start(pods: Sequence[Mapping[str, Any]]) -> float | None:
    return min((pod["started_at"] for pod in pods if pod.get("started_at")), default=None)
