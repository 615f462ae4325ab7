"""A run's curve: points come in once each, and go out as one curve that later attempts overrule, thinned if asked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from sqlalchemy import func, select

from controlplane.domain.errors import NotFound
from controlplane.faults import fault
from controlplane.services import runs
from controlplane.services.checkpoints import requested
from controlplane.services.context import Context
from controlplane.services.sketches import sketched
from controlplane.store.history import PLACE, drawn, points_of
from controlplane.store.points import Heard, Report, add_reports, newest_seq
from controlplane.store.tables import MetricBlock, MetricPoint
from controlplane.tracing import span

SHAPE_KEYS = ("loss", "val_loss")  # whose extremes a thinned curve keeps, where no keys were asked for
LARGEST_BATCH = 5000


def add_metrics(context: Context, run_id: str, attempt: int, points: Sequence[Mapping[str, Any]]) -> Heard:
    """Add points of an attempt. A point that is there already changes nothing.

    Each needs `seq`, `step` and `time`. Without any, nothing is written. Raises NotFound.
    """
    if not points:
        with context.store.read() as session:
            return Heard(newest_seq(session, run_id, attempt), requested(session, run_id, attempt))
    with span("store write"):
        (heard,) = add_all(context, [Report(run_id, attempt, points)]).result()
    return acknowledged(heard)


def add_all(context: Context, reports: Sequence[Report]) -> Future[list[Heard | NotFound]]:
    """As `add_metrics`, of several reports that all have points, to be waited for."""
    return context.store.together(add_reports, reports)


def acknowledged(heard: Heard | NotFound) -> Heard:
    """What its trainer may be told of a report that `add_all` has stored. Raises NotFound."""
    fault("points stored")
    if isinstance(heard, NotFound):
        raise heard
    return heard


def points_after(
    context: Context, run_id: str, *, attempt: int = 0, seq: int = 0, limit: int = LARGEST_BATCH
) -> list[dict[str, Any]]:
    """Points as they came, beyond point `seq` of `attempt`: what a stream sends. Raises NotFound."""
    run_id = runs.get(context, run_id).id
    with context.store.read() as session:
        return [*points_of(session, run_id, after=(attempt, seq), limit=min(limit, LARGEST_BATCH))]


def curve(
    context: Context, run_id: str, *, keys: Collection[str] = (), downsample: int | None = None
) -> list[dict[str, Any]]:
    """One point a step, of the highest attempt that reached it, with its evaluation merged in. Raises NotFound.

    `keys` picks values, and leaves out points that have none of them. `downsample` bounds the number of points; the
    first, the last, and each stretch's extremes stay; a long curve is drawn from its tiers once the run has ended, and
    before from a sketch that grows with it.
    """
    run_id = runs.get(context, run_id).id
    shape = [*keys] or SHAPE_KEYS
    with context.store.read() as session:
        few = drawn(session, run_id, shape, downsample // 2, keys or None) if downsample else None
        if few is None and downsample:
            few = sketched(context.store, session, run_id, shape, downsample // 2)
        points = merged(points_of(session, run_id, keys=keys or None) if few is None else few)
    if keys:
        points = [picked for point in points if (picked := _pick(point, keys))]
    return thinned(points, downsample, shape) if downsample else points


def last_point(context: Context, run_id: str) -> tuple[int, int]:
    """The newest point's (attempt, seq); (0, 0) where there is none. Raises NotFound."""
    run_id = runs.get(context, run_id).id
    with context.store.read() as session:
        tables = (MetricPoint, MetricBlock)
        numbers = [session.scalar(select(func.max(table.attempt)).where(table.run_id == run_id)) for table in tables]
        attempt = max(number or 0 for number in numbers)
        return attempt, newest_seq(session, run_id, attempt)


def merged(points: Any) -> list[dict[str, Any]]:
    """Points in order of (attempt, seq) as one curve by step: a later attempt's replace, its own are joined."""
    steps: dict[int, dict[str, Any]] = {}
    for point in points:
        there = steps.get(point["step"])
        same = there is not None and there["attempt"] == point["attempt"]
        steps[point["step"]] = {**there, **point} if there is not None and same else point
    return [steps[step] for step in sorted(steps)]


def thinned(points: list[dict[str, Any]], most: int, keys: Sequence[str]) -> list[dict[str, Any]]:
    """At most `most` (never fewer than 2) of the points: the ends, and the extremes of `keys` in equal stretches."""
    if len(points) <= max(most, 2):
        return points
    present = [key for key in keys if any(_number(point, key) is not None for point in points)]
    stretches = (most - 2) // (2 * max(1, len(present)))
    kept = {0, len(points) - 1}
    for stretch in range(stretches):
        places = range(len(points) * stretch // stretches, len(points) * (stretch + 1) // stretches)
        for key in present:
            known = [(value, place) for place in places if (value := _number(points[place], key)) is not None]
            kept |= {min(known)[1], max(known)[1]} if known else set()
    return [points[place] for place in sorted(kept)]


def _number(point: Mapping[str, Any], key: str) -> float | None:
    value = point.get(key)
    return float(value) if isinstance(value, int | float) else None


def _pick(point: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any] | None:
    values = {key: point[key] for key in keys if key in point and key not in PLACE}
    return {**{key: point[key] for key in PLACE}, **values} if values else None
