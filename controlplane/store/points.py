"""Metric points: added once each, by the API as they come and by the reconciler from the record that was left.

Reports that wait are stored together: what is read for all of them takes one statement, as does each thing that is
written. Statements are made of values, since the mapper would take most of the time that a report costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, and_, bindparam, func, select, update
from sqlalchemy.orm import Session

from controlplane.domain.errors import NotFound
from controlplane.faults import fault
from controlplane.store.history import PLACE, newest_packed, packed_seqs
from controlplane.store.rows import add_rows, given, several
from controlplane.store.tables import Attempt, Event, MetricBlock, MetricPoint, Run
from controlplane.store.writer import Transaction

SAVE = "save"  # the event by which a checkpoint is asked for
PROGRESS = ("loss", "val_loss", "tokens_per_s", "eta_s", "mfu", "memory_bytes")
LOWEST = {"best_loss": "loss", "best_val_loss": "val_loss"}
ADVANCE = (
    update(Run.__table__)  # type: ignore[arg-type]
    .where(Run.id == bindparam("run"))
    .values(progress=bindparam("new_progress"), checkpoint_step=bindparam("new_checkpoint"))
)


class Report(NamedTuple):
    """Points of an attempt, each with its `seq`, `step` and `time`."""

    run_id: str
    attempt: int
    points: Sequence[Mapping[str, Any]]


class Heard(NamedTuple):
    """What a trainer is told of its points: the highest `seq` stored, and the number of the newest wish to `save`."""

    seq: int
    save: int


class _Run:
    """How far a run is, as this transaction leaves it."""

    def __init__(self, row: Any) -> None:
        self.id, self.attempt, self.ended = row.id, row.attempt, row.finished_at is not None
        self.progress: dict[str, Any] | None = row.progress
        self.checkpoint: int | None = row.checkpoint_step
        self.changed = False


class _Attempt:
    """What is stored of an attempt's points: `newest` is their highest `seq`, `added` are those of this transaction."""

    def __init__(self, run: _Run, row: Any) -> None:
        self.run, self.number, self.save = run, row.number, row.save or 0
        self.newest: int = max(row.in_rows or 0, row.packed or 0)
        self.added: set[int] = set()

    def fresh(self, session: Session, points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The points that are not there yet, each once, by `seq`."""
        by_seq = {int(point["seq"]): point for point in points}
        first = min(by_seq, default=0)
        new = by_seq.keys() - self._known(session, first) if first <= self.newest else by_seq
        self.added.update(new)
        self.newest = max(self.newest, *new, 0)
        return [by_seq[seq] for seq in sorted(new)]

    def _known(self, session: Session, first: int) -> set[int]:
        """Every `seq` from `first` on that is there."""
        here = (MetricPoint.run_id == self.run.id, MetricPoint.attempt == self.number)
        known = set(session.scalars(select(MetricPoint.seq).where(*here, MetricPoint.seq >= first)))
        packed = packed_seqs(session, self.run.id, self.number, first) if self.run.ended else set[int]()
        return known | packed | self.added


def add_points(transaction: Transaction, run_id: str, attempt: int, points: Sequence[Mapping[str, Any]]) -> int:
    """Store the points that are not there yet, and the run's progress; returns the attempt's highest `seq`.

    Raises NotFound.
    """
    ((heard,),) = add_reports(transaction, [[Report(run_id, attempt, points)]])
    if isinstance(heard, NotFound):
        raise heard
    return heard.seq


def add_reports(transaction: Transaction, batches: Sequence[Sequence[Report]]) -> list[list[Heard | NotFound]]:
    """As `add_points`, of batches of reports: for each report what its trainer is told, or what is not there."""
    answers = iter(_added(transaction, [report for batch in batches for report in batch]))
    return [[next(answers) for _ in batch] for batch in batches]


def _added(transaction: Transaction, reports: Sequence[Report]) -> list[Heard | NotFound]:
    session, connection = transaction.session, transaction.session.connection()
    runs, attempts = _stored(connection, reports)
    answers: list[Heard | NotFound] = []
    rows: list[dict[str, Any]] = []
    news: list[tuple[_Run, list[Mapping[str, Any]]]] = []
    for report in reports:
        attempt = attempts.get((report.run_id, report.attempt))
        if attempt is None:
            answers.append(_missing(report, runs))
            continue
        fresh = attempt.fresh(session, report.points)
        rows += [_row(report.run_id, report.attempt, point) for point in fresh]
        if fresh:
            transaction.touched.add(report.run_id)
        if fresh and report.attempt == attempt.run.attempt:
            news.append((attempt.run, fresh))
        answers.append(Heard(attempt.newest, attempt.save))
    if rows:
        add_rows(connection, MetricPoint.__table__, rows)
    fault("points added")
    if news:
        _advance(connection, news)
    return answers


def newest_seq(session: Session, run_id: str, attempt: int) -> int:
    """The attempt's highest `seq`; 0 where it has no point."""
    here = (MetricPoint.run_id == run_id, MetricPoint.attempt == attempt)
    in_rows = session.scalar(select(func.max(MetricPoint.seq)).where(*here)) or 0
    return max(in_rows, newest_packed(session, run_id, attempt))


@lru_cache
def _wanted(count: int) -> Select[Any]:
    """Runs and attempts, of so many; no other process changes these runs before this transaction has ended."""
    row, block, event, here = MetricPoint, MetricBlock, Event, Attempt.number
    in_rows = select(func.max(row.seq)).where(row.run_id == Run.id, row.attempt == here)
    packed = select(func.max(block.last_seq)).where(block.run_id == Run.id, block.attempt == here)
    save = select(func.max(event.seq)).where(event.run_id == Run.id, event.attempt == here, event.kind == SAVE)
    attempts = and_(Attempt.run_id == Run.id, Attempt.number.in_(several("attempt", count, int)))
    return (
        select(Run.id, Run.attempt, Run.finished_at, Run.progress, Run.checkpoint_step, Attempt.number)
        .add_columns(in_rows.scalar_subquery().label("in_rows"), packed.scalar_subquery().label("packed"))
        .add_columns(save.scalar_subquery().label("save"))
        .outerjoin_from(Run, Attempt, attempts)
        .where(Run.id.in_(several("run", count, str)))
        .order_by(Run.id)
        .with_for_update(key_share=True, of=Run)
    )


def _stored(
    connection: Connection, reports: Sequence[Report]
) -> tuple[dict[str, _Run], dict[tuple[str, int], _Attempt]]:
    """What is there of the runs and attempts that are reported of."""
    count, values = given(run=[one.run_id for one in reports], attempt=sorted({one.attempt for one in reports}))
    runs: dict[str, _Run] = {}
    attempts: dict[tuple[str, int], _Attempt] = {}
    for row in connection.execute(_wanted(count), values):
        run = runs.setdefault(row.id, _Run(row))
        if row.number is not None:
            attempts[row.id, row.number] = _Attempt(run, row)
    return runs, attempts


def _missing(report: Report, runs: Mapping[str, _Run]) -> NotFound:
    return NotFound("attempt", report.attempt) if report.run_id in runs else NotFound("run", report.run_id)


def _row(run_id: str, attempt: int, point: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in point.items() if key not in PLACE}
    place = {"seq": int(point["seq"]), "step": int(point["step"]), "time": float(point["time"])}
    return {"run_id": run_id, "attempt": attempt, "values": values, **place}


def _advance(connection: Connection, news: Iterable[tuple[_Run, Sequence[Mapping[str, Any]]]]) -> None:
    """The runs' progress and last checkpoints after these points."""
    runs: dict[str, _Run] = {}
    for run, points in news:
        runs[run.id] = run
        _take(run, points)
    for run_id, steps in _steps(connection, [one.id for one in runs.values() if _lacks_steps(one)]):
        runs[run_id].progress = {**(runs[run_id].progress or {}), "steps": steps}
    told = [{"run": one.id, "new_progress": one.progress, "new_checkpoint": one.checkpoint} for one in runs.values()]
    connection.execute(ADVANCE, told)


def _take(run: _Run, points: Sequence[Mapping[str, Any]]) -> None:
    """Take in points, the newest last; a value that they lack stays."""
    published = [point["checkpoint"] for point in points if isinstance(point.get("checkpoint"), int)]
    run.checkpoint = max([*published, run.checkpoint or 0]) or None
    steps = [point for point in points if "checkpoint" not in point]  # published while training went on: behind them
    if not steps:
        return
    latest: dict[str, Any] = {}
    for point in steps:
        latest.update(point)
    progress = run.progress or dict.fromkeys(PROGRESS)
    known = {key: latest[key] for key in PROGRESS if key in latest}
    place = {"step": int(latest["step"]), "time": float(latest["time"])}
    run.progress = {**progress, **place, **known, **_lowest(progress, steps)}


def _lowest(progress: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The lowest values so far, of those that these points have."""
    found = {best: [point[key] for point in points if _finite(point.get(key))] for best, key in LOWEST.items()}
    return {best: min(*values, progress.get(best, math.inf)) for best, values in found.items() if values}


def _lacks_steps(run: _Run) -> bool:
    return run.progress is not None and not run.progress.get("steps")


def _steps(connection: Connection, run_ids: Sequence[str]) -> list[tuple[str, int]]:
    """How many steps in all these runs take, as they were resolved: their first points have come."""
    if not run_ids:
        return []
    found = connection.execute(select(Run.id, Run.resolved).where(Run.id.in_(run_ids)))
    return [(run_id, resolved["steps"]) for run_id, resolved in found]


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
