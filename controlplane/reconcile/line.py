"""The lines before a cluster that has no queues of its own: docs/lifecycle.md, "Whole or not at all" and "Quotas".

Where pods are placed one by one, several objects of several pods could each hold half of their places for ever. So one
is made at a time, and the next when all pods of the one before have their places. Where a namespace has a quota of
GPUs, its runs are begun while their GPUs are within it. Both lines go by priority, and then by who became due first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, case, func, select
from sqlalchemy.orm import Session

from controlplane.domain.diagnoses import HELD_BACK
from controlplane.domain.phases import LIVE, Phase
from controlplane.domain.priorities import rank
from controlplane.domain.queues import DEFAULT_QUEUE
from controlplane.store.moves import CREATE
from controlplane.store.tables import Attempt, Outbox, Run

REASON, BEYOND_QUOTA = "WaitsForTurn", "WaitsForGPUs"
UNDER_WAY = LIVE - {Phase.QUEUED, Phase.SUSPENDED}


@dataclass(frozen=True)
class Held:
    """A run that waits in this `phase`, and for what; `news`: whether it is not told so yet."""

    run_id: str
    phase: str
    reason: str
    message: str
    news: bool


def in_line(
    session: Session, due: ColumnElement[bool], ours: ColumnElement[bool], elsewhere: Collection[str], *, queues: bool
) -> list[Held]:
    """The runs of several pods that are `due` and wait for another of `ours`; who waits `elsewhere` does not count.

    Nor do those with a queue of their own where the cluster has `queues`, nor those that such a queue holds back though
    they name none (it may be the namespace's default): they hold no place.
    """
    placed = [Run.nodes > 1, *([Run.queue == DEFAULT_QUEUE] if queues else [])]
    holds = func.coalesce(Run.reason, "") != HELD_BACK
    finding = select(Run.name).where(ours, Run.phase.in_([Phase.SUBMITTING, Phase.PENDING]), *placed, holds)
    first = session.scalar(finding.limit(1))
    line = waiting(session, due, elsewhere, *placed, Run.phase != Phase.SUBMITTING)
    if first is None and line:
        first = line.pop(0).name
    held: list[Held] = []
    for place, one in enumerate(line, 1):
        told = f"place {place} in line: all pods of {first!r} must find their places first"
        held.append(Held(one.id, one.phase, REASON, told, news=one.phase == Phase.QUEUED and one.message != told))
    return held


def beyond_quotas(
    session: Session,
    due: ColumnElement[bool],
    ours: ColumnElement[bool],
    elsewhere: Collection[str],
    quotas: Mapping[str, int],
    own: str,
) -> Iterator[Held]:
    """Queued runs that are `due` and for whose GPUs their namespace's quota has no room, or that stand behind one.

    `ours` are the cluster's runs; those that name no namespace are in its `own`. What is under way keeps its GPUs
    through its restarts.
    """
    if not quotas:
        return
    where = case((Run.namespace == "", own), else_=Run.namespace)
    under_way = select(where, func.sum(Run.gpus)).where(ours, Run.phase.in_([*UNDER_WAY])).group_by(where)
    taken: dict[str, int] = {namespace: int(gpus) for namespace, gpus in session.execute(under_way)}
    line = waiting(session, due, elsewhere, Run.phase == Phase.QUEUED, Run.gpus > 0, where.in_([*quotas]))
    places = dict.fromkeys(quotas, 0)
    for one in line:
        name = one.namespace or own
        left = quotas[name] - taken.get(name, 0)
        if not places[name] and one.gpus <= left:
            taken[name] = taken.get(name, 0) + one.gpus
            continue
        places[name] += 1
        told = (
            f"place {places[name]} in line: of the {quotas[name]} GPUs of namespace {name!r} {max(0, left)} are free, "
            f"and it needs {one.gpus}"
        )
        yield Held(one.id, one.phase, BEYOND_QUOTA, told, news=one.message != told)


def waiting(
    session: Session, due: ColumnElement[bool], elsewhere: Collection[str], *which: ColumnElement[bool]
) -> list[Any]:
    """The runs of a kind whose objects are `due`, in the order in which they go; who waits `elsewhere` is left out."""
    wanted = (
        select(Run.id, Run.name, Run.phase, Run.message, Run.gpus, Run.namespace, Attempt.priority)
        .join(Outbox, (Outbox.run_id == Run.id) & (Outbox.op == CREATE))
        .join(Attempt, (Attempt.run_id == Run.id) & (Attempt.number == Outbox.attempt))
        .where(due, *which, Run.id.not_in([*elsewhere]))
        .order_by(Outbox.due_at, Run.id)
    )
    found: Sequence[Any] = session.execute(wanted).all()
    return sorted(found, key=lambda one: -rank(one.priority))
