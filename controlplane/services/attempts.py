"""A run's attempts, its events, and the manifest of each attempt."""

from __future__ import annotations

import math
import time
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import undefer

from controlplane.clusters.base import ClusterError, ObservedJob
from controlplane.domain.errors import ClusterSilent, NotFound, Unauthorized
from controlplane.domain.names import token_hash
from controlplane.domain.resolve import ResolvedRun
from controlplane.render import render
from controlplane.services import runs
from controlplane.services.context import Context, Reporter
from controlplane.services.views import AttemptView, EventView, PodsView, RunView, view_attempt, view_event, view_pod
from controlplane.store.tables import Attempt, Event, Run
from controlplane.submission import attempt_of

LARGEST_BATCH = 1000
MOST_REPORTERS = 8192  # tokens that are remembered
POD_KNOWN_S = 5.0  # how long a pod's is: its attempt may end, and the cluster take it back


def attempts(context: Context, run_id: str) -> list[AttemptView]:
    """The run's attempts, oldest first. Raises NotFound."""
    run_id = runs.get(context, run_id).id
    with context.store.read() as session:
        rows = session.scalars(select(Attempt).where(Attempt.run_id == run_id).order_by(Attempt.number)).all()
        return [view_attempt(row) for row in rows]


def attempt(context: Context, run_id: str, number: int | None = None) -> AttemptView:
    """One attempt, the latest unless a number is given. Raises NotFound."""
    return _attempt(context, runs.get(context, run_id), number)


def _attempt(context: Context, run: RunView, number: int | None) -> AttemptView:
    with context.store.read() as session:
        row = session.get(Attempt, (run.id, number or run.attempt))
        if row is None:
            raise NotFound("attempt", number or run.attempt, f"run {run.id} has had 1 to {run.attempt}")
        return view_attempt(row)


def pods(context: Context, run_id: str, number: int | None = None) -> PodsView:
    """The pods of an attempt, the latest unless a number is given.

    As the cluster shows them; as last seen where the attempt is over, or the cluster does not answer. Raises NotFound.
    """
    run = runs.get(context, run_id)
    chosen = _attempt(context, run, number)
    job = None if chosen.finished_at else _seen(runs.where(context, run), chosen.name)
    items = chosen.pods if job is None else [view_pod(pod) for pod in job.pods]
    return PodsView(chosen.attempt, chosen.name, job is not None, items)


def _seen(context: Context, name: str) -> ObservedJob | None:
    try:
        return next((job for job in context.cluster.observe() if job.name == name), None)
    except ClusterError:
        return None


def events(context: Context, run_id: str, *, after: int = 0, limit: int = LARGEST_BATCH) -> list[EventView]:
    """The run's events beyond `after`, oldest first. Raises NotFound."""
    run_id = runs.get(context, run_id).id
    wanted = select(Event).where(Event.run_id == run_id, Event.seq > after).order_by(Event.seq)
    with context.store.read() as session:
        return [view_event(row) for row in session.scalars(wanted.limit(min(limit, LARGEST_BATCH)))]


def last_event(context: Context, run_id: str) -> int:
    """The `seq` of the run's newest event. Raises NotFound."""
    run_id = runs.get(context, run_id).id
    with context.store.read() as session:
        return session.scalar(select(func.max(Event.seq)).where(Event.run_id == run_id)) or 0


def manifest(context: Context, run_id: str, number: int | None = None) -> dict[str, Any]:
    """The manifest of an attempt, the latest unless a number is given. No token is in it. Raises NotFound."""
    chosen = attempt(context, run_id, number)
    wanted = select(Run, Attempt.priority).join(Attempt).where(Attempt.object_name == chosen.name)
    with context.store.read() as session:
        run, priority = session.execute(wanted.options(undefer(Run.resolved))).one()
    described = attempt_of(
        run.id,
        chosen.name,
        chosen.attempt,
        ResolvedRun.from_json(run.resolved),
        spec_hash=run.spec_hash,
        url=context.at(run.cluster).url,
        image=context.image,
        priority=priority,
        token="-",  # that there is one; the manifest names its secret, not the token
    )
    return render(described)


def authenticate(context: Context, run_id: str, token: str) -> int:
    """The attempt of this run whose token this is: its own, or a service account's of one of its pods.

    Raises Unauthorized, also for a pod that no look has shown yet: it asks again. Raises ClusterSilent where nobody can
    say now whose token it is.
    """
    pods = token.count(".") == 2
    number = _attempt_of_pod(context, run_id, token) if pods else _attempt_of_own(context, run_id, token)
    if len(context.reporters) >= MOST_REPORTERS:
        context.reporters.clear()
    until = time.monotonic() + POD_KNOWN_S if pods else math.inf
    context.reporters[token_hash(token)] = Reporter(run_id, number, until)
    return number


def remembered(context: Context, run_id: str, token: str) -> int | None:
    """As `authenticate`, from what it found before; None where it has to be asked.

    An attempt's own token never changes hands; a pod's is asked for again and again. Who is remembered may be purged.
    """
    known = context.reporters.get(token_hash(token))
    return known.attempt if known and known.run_id == run_id and time.monotonic() < known.until else None


def forget(context: Context, token: str) -> None:
    """Remember this token's attempt no more."""
    context.reporters.pop(token_hash(token), None)


def _attempt_of_own(context: Context, run_id: str, token: str) -> int:
    with context.store.read() as session:
        found = session.execute(
            select(Attempt.run_id, Attempt.number).where(Attempt.token_hash == token_hash(token))
        ).one_or_none()
    if found is None or found.run_id != run_id:
        raise Unauthorized
    return int(found.number)


def _attempt_of_pod(context: Context, run_id: str, token: str) -> int:
    """The live attempt one of whose pods holds this service-account token."""
    with context.store.read() as session:
        joined = (Attempt.run_id == Run.id) & (Attempt.number == Run.attempt)
        found = session.execute(select(Attempt, Run.cluster).join(Run, joined).where(Run.id == run_id)).one_or_none()
    row, cluster = (None, "") if found is None else found
    try:
        caller = context.at(cluster).cluster.authenticate(token)
    except ClusterError as error:
        raise ClusterSilent(str(error)) from None
    if caller is None or row is None or row.finished_at is not None:
        raise Unauthorized
    if not any((pod["name"], pod["uid"]) == (caller.pod, caller.uid) for pod in row.pods):
        raise Unauthorized
    return row.number
