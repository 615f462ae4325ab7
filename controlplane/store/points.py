"""Metric points: added once each, by the API as they come and by the reconciler from the record that was left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from controlplane.faults import fault
from controlplane.store.history import PLACE, newest_packed, packed_seqs
from controlplane.store.moves import get_attempt, get_run
from controlplane.store.rows import add_rows
from controlplane.store.tables import MetricPoint, Run
from controlplane.store.writer import Transaction

PROGRESS = ("loss", "val_loss", "tokens_per_s", "eta_s", "mfu", "memory_bytes")
LOWEST = {"best_loss": "loss", "best_val_loss": "val_loss"}


def add_points(transaction: Transaction, run_id: str, attempt: int, points: Sequence[Mapping[str, Any]]) -> int:
    """Store the points that are not there yet, and the run's progress; returns the attempt's highest `seq`.

    Raises NotFound.
    """
    run = get_run(transaction, run_id)
    get_attempt(transaction, run_id, attempt)
    session, here = transaction.session, (MetricPoint.run_id == run_id, MetricPoint.attempt == attempt)
    given = {int(point["seq"]): point for point in points}
    first = min(given, default=0)
    known = set(session.scalars(select(MetricPoint.seq).where(*here, MetricPoint.seq >= first)))
    if run.finished_at is not None:
        known |= packed_seqs(session, run_id, attempt, first)
    fresh = [given[seq] for seq in sorted(given.keys() - known)]
    if fresh:
        add_rows(session.connection(), MetricPoint.__table__, [_row(run_id, attempt, point) for point in fresh])
    fault("points added")
    if fresh and attempt == run.attempt:
        _advance(run, fresh)
        session.flush()
    if fresh:
        transaction.touched.add(run_id)
    return newest_seq(session, run_id, attempt)


def newest_seq(session: Session, run_id: str, attempt: int) -> int:
    """The attempt's highest `seq`; 0 where it has no point."""
    here = (MetricPoint.run_id == run_id, MetricPoint.attempt == attempt)
    in_rows = session.scalar(select(func.max(MetricPoint.seq)).where(*here)) or 0
    return max(in_rows, newest_packed(session, run_id, attempt))


def _row(run_id: str, attempt: int, point: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in point.items() if key not in PLACE}
    place = {"seq": int(point["seq"]), "step": int(point["step"]), "time": float(point["time"])}
    return {"run_id": run_id, "attempt": attempt, "values": values, **place}


def _advance(run: Run, points: Sequence[Mapping[str, Any]]) -> None:
    """The run's progress and last checkpoint after these points, the newest last; a value that they lack stays."""
    progress = dict(run.progress or dict.fromkeys(PROGRESS))
    published = [point["checkpoint"] for point in points if isinstance(point.get("checkpoint"), int)]
    run.checkpoint_step = max([*published, run.checkpoint_step or 0]) or None
    for point in points:
        if "checkpoint" in point:
            continue  # published while training went on: it comes behind the steps
        known = {key: point[key] for key in PROGRESS if key in point}
        lowest = {
            best: min(point[key], progress.get(best, math.inf)) for best, key in LOWEST.items() if _finite(point, key)
        }
        progress |= {"step": int(point["step"]), "time": float(point["time"]), **known, **lowest}
    progress["steps"] = progress.get("steps") or run.resolved["steps"]
    if "step" in progress:
        run.progress = progress


def _finite(point: Mapping[str, Any], key: str) -> bool:
    value = point.get(key)
    return isinstance(value, int | float) and math.isfinite(value)
