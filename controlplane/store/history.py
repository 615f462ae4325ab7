"""Points of runs that have ended, moved from rows into packed blocks, and the tiers that long curves are drawn from.

A block is stored in the transaction that removes its rows, and only after it was unpacked to the very same points.
Tiers are caches: they hold nothing that the blocks do not.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from sqlalchemy import delete, func, select, tuple_
from sqlalchemy.orm import Session

from controlplane.domain.names import compact
from controlplane.domain.phases import TERMINAL
from controlplane.store.packed import pack, unpack
from controlplane.store.tables import MetricBlock, MetricPoint, MetricTier, Run
from controlplane.store.writer import Transaction

PLACE = ("attempt", "seq", "step", "time")  # where a point lies; everything else is a value
BLOCK = 8192  # points of one
DRAWN = 8192  # points from which on a curve has tiers
ENDS = -1  # where a tier keeps its first and last point
STRETCHES = 512  # of a tier: each keeps its lowest and its highest point
COLUMNS = ("run_id", "attempt", "first_seq", "last_seq", "points", "data")
AT_ONCE = 1000  # rows that are read
WAIT_S = 60.0  # after a run's end: what was under way arrives


class Moved(Exception):
    """Points came in between: what was packed is not all of them."""


def points_of(
    session: Session,
    run_id: str,
    *,
    after: tuple[int, int] = (0, 0),
    keys: Collection[str] | None = None,
    limit: int | None = None,
) -> Iterator[dict[str, Any]]:
    """The run's first `limit` points beyond (attempt, seq), in that order, wherever they lie; of packed ones `keys`."""
    row = MetricPoint
    wanted = select(row.attempt, row.seq, row.step, row.time, row.values).where(row.run_id == run_id)
    wanted = wanted.where(tuple_(row.attempt, row.seq) > after).order_by(row.attempt, row.seq).limit(limit)
    with session.execute(wanted, execution_options={"yield_per": AT_ONCE}) as rows:
        told = ({**dict(zip(PLACE, place, strict=True)), **values} for *place, values in rows)
        yield from islice(heapq.merge(told, _packed(session, run_id, after, keys), key=_place), limit)


def point_of(row: Any) -> dict[str, Any]:
    """A stored point as it came."""
    return {"attempt": row.attempt, "seq": row.seq, "step": row.step, "time": row.time, **row.values}


def newest_packed(session: Session, run_id: str, attempt: int) -> int:
    """The highest `seq` of an attempt that is in a block; 0 without."""
    here = (MetricBlock.run_id == run_id, MetricBlock.attempt == attempt)
    return session.scalar(select(func.max(MetricBlock.last_seq)).where(*here)) or 0


def packed_seqs(session: Session, run_id: str, attempt: int, first: int) -> set[int]:
    """Every `seq` from `first` on that is in a block."""
    here = (MetricBlock.run_id == run_id, MetricBlock.attempt == attempt, MetricBlock.last_seq >= first)
    blocks = session.scalars(select(MetricBlock.data).where(*here))
    return {point["seq"] for data in blocks for point in unpack(data, {"seq"})}


def ended_with_rows(session: Session, now: float, but: Collection[str] = ()) -> str | None:
    """A run that has ended and has points in rows, `but` these; None without. Looks at one row of each run that has."""
    last = ""
    while (run_id := session.scalar(select(func.min(MetricPoint.run_id)).where(MetricPoint.run_id > last))) is not None:
        over = (Run.phase.in_([*TERMINAL]), Run.finished_at < now - WAIT_S)
        if run_id not in but and session.scalar(select(Run.id).where(Run.id == run_id, *over)) is not None:
            return run_id
        last = run_id
    return None


def undrawn(session: Session) -> list[str]:
    """Long runs that have no tiers, as after a process that was killed before it made them."""
    drawn_ones = select(MetricTier.run_id).distinct()
    each = select(MetricBlock.run_id).where(MetricBlock.run_id.not_in(drawn_ones)).group_by(MetricBlock.run_id)
    return [*session.scalars(each.having(func.sum(MetricBlock.points) > DRAWN))]


def next_points(session: Session, run_id: str) -> Sequence[Any]:
    """The run's first points in rows, all of one attempt, as many as a block takes, without the mapper."""
    attempt = session.scalar(select(func.min(MetricPoint.attempt)).where(MetricPoint.run_id == run_id))
    here = (MetricPoint.run_id == run_id, MetricPoint.attempt == attempt)
    row = MetricPoint
    wanted = select(row.run_id, row.attempt, row.seq, row.step, row.time, row.values).where(*here)
    return session.connection().execute(wanted.order_by(row.seq).limit(BLOCK)).all()


def packed_block(rows: Sequence[Any]) -> MetricBlock:
    """A block of these rows, which was unpacked to the very same points."""
    points = [point_of(row) for row in rows]
    data = pack(points)
    if not _alike(unpack(data), points):
        raise ValueError(f"points of run {rows[0].run_id} from seq {rows[0].seq} on do not come back as they went in")
    first, last = rows[0], rows[-1]
    place = {"run_id": first.run_id, "attempt": first.attempt, "first_seq": first.seq, "last_seq": last.seq}
    return MetricBlock(**place, points=len(rows), data=data)


def replace(transaction: Transaction, block: MetricBlock) -> None:
    """Put a block in the place of its rows. Raises Moved, with nothing written, where there are others by now."""
    here = (MetricPoint.run_id == block.run_id, MetricPoint.attempt == block.attempt)
    between = MetricPoint.seq.between(block.first_seq, block.last_seq)
    gone = transaction.session.connection().execute(delete(MetricPoint).where(*here, between))
    if gone.rowcount != block.points:
        raise Moved
    transaction.session.execute(delete(MetricTier).where(MetricTier.run_id == block.run_id))
    transaction.session.add(MetricBlock(**{name: getattr(block, name) for name in COLUMNS}))
    transaction.session.flush()


def in_rows(session: Session, run_id: str) -> bool:
    """Whether any of the run's points is not packed."""
    return session.scalar(select(MetricPoint.seq).where(MetricPoint.run_id == run_id).limit(1)) is not None


def long(session: Session, run_id: str) -> bool:
    """Whether drawing the run's packed curve whole would take too long."""
    return (session.scalar(select(func.sum(MetricBlock.points)).where(MetricBlock.run_id == run_id)) or 0) > DRAWN


def tiers_of(session: Session, run_id: str) -> list[MetricTier]:
    """The tiers of a run's curve, of each of its values."""
    low, high = 1 << 62, 0
    for point in _packed(session, run_id, (0, 0), {"step"}):
        low, high = min(low, point["step"]), max(high, point["step"])
    width = (high - low) // STRETCHES + 1
    kept: dict[str, dict[tuple[int, int], Mapping[str, Any]]] = {}
    for point in _latest(session, run_id):
        stretch = (point["step"] - low) // width
        for key, value in point.items():
            if key in PLACE or not isinstance(value, int | float):
                continue
            places = kept.setdefault(key, {})
            places.setdefault((ENDS, 0), point)
            places[ENDS, 1] = point
            for side, sign in ((0, -1), (1, 1)):
                there = places.get((stretch, side))
                if there is None or sign * value > sign * there[key]:
                    places[stretch, side] = point
    return [MetricTier(run_id=run_id, key=key, data=pack(_ordered(places.values()))) for key, places in kept.items()]


def drawn(
    session: Session, run_id: str, shape: Collection[str], stretches: int, keys: Collection[str] | None = None
) -> list[dict[str, Any]] | None:
    """The points of a long curve that keep its `shape` in so many stretches, of their values only `keys`.

    None where it must be read whole.
    """
    if stretches > STRETCHES or in_rows(session, run_id):
        return None
    tiers = session.scalars(select(MetricTier.data).where(MetricTier.run_id == run_id, MetricTier.key.in_(shape))).all()
    if not tiers:
        return None
    wanted = None if keys is None else {*PLACE, *keys}
    return _ordered(point for data in tiers for point in unpack(data, wanted))


def _packed(
    session: Session, run_id: str, after: tuple[int, int], keys: Collection[str] | None
) -> Iterator[dict[str, Any]]:
    place, wanted = tuple_(MetricBlock.attempt, MetricBlock.last_seq), None if keys is None else {*PLACE, *keys}
    blocks = select(MetricBlock.attempt, MetricBlock.first_seq).where(MetricBlock.run_id == run_id, place > after)
    overlapping: list[dict[str, Any]] = []
    for attempt, first in session.execute(blocks.order_by(MetricBlock.attempt, MetricBlock.first_seq)).all():
        here = (MetricBlock.run_id == run_id, MetricBlock.attempt == attempt, MetricBlock.first_seq == first)
        data = session.scalars(select(MetricBlock.data).where(*here)).one()
        points = [point for point in unpack(data, wanted) if _place(point) > after]
        ready = [point for point in overlapping if _place(point) < (attempt, first)]
        yield from ready
        overlapping = sorted([*overlapping[len(ready) :], *points], key=_place)
    yield from overlapping


def _latest(session: Session, run_id: str) -> Iterator[dict[str, Any]]:
    """One point a step, of the latest attempt that reached it, as one pass from the last attempt back can tell."""
    numbers = select(MetricBlock.attempt).where(MetricBlock.run_id == run_id).distinct()
    low: int | None = None
    high = 0
    for attempt in session.scalars(numbers.order_by(MetricBlock.attempt.desc())).all():
        first, last = None, 0
        for point in _of_attempt(session, run_id, attempt):
            step = point["step"]
            if low is not None and low <= step <= high:
                continue
            first, last = step if first is None else min(first, step), max(last, step)
            yield point
        if first is not None:
            low, high = first if low is None else min(low, first), max(high, last)


def _of_attempt(session: Session, run_id: str, attempt: int) -> Iterator[dict[str, Any]]:
    """An attempt's points, those of one step that follow each other joined."""
    joined: dict[str, Any] = {}
    for point in _packed(session, run_id, (attempt, 0), None):
        if point["attempt"] != attempt:
            break
        if joined and joined["step"] != point["step"]:
            yield joined
            joined = {}
        joined = {**joined, **point}
    if joined:
        yield joined


def _ordered(points: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each point once, by step."""
    unique = {(point["attempt"], point["seq"]): dict(point) for point in points}
    return sorted(unique.values(), key=lambda point: (point["step"], *_place(point)))


def _place(point: Mapping[str, Any]) -> tuple[int, int]:
    return point["attempt"], point["seq"]


def _alike(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    """Whether points are the same to the last digit. Mostly their names have the same order, too."""
    return compact(one) == compact(other) or _told(one) == _told(other)


def _told(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Points as JSON says them: 1 is not 1.0 there."""
    return [json.dumps(point, sort_keys=True) for point in points]
