"""The line before a cluster that places pods one by one: docs/lifecycle.md, "Whole or not at all".

Several objects of several pods could each hold half of their places for ever. So one is made at a time, in the order in
which they became due, and the next when all pods of the one before have their places.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from controlplane.domain.phases import Phase
from controlplane.store.moves import CREATE
from controlplane.store.tables import Outbox, Run

REASON = "WaitsForTurn"


@dataclass(frozen=True)
class Held:
    """A run that waits in this `phase`, and for what; `news`: whether it is not told so yet."""

    run_id: str
    phase: str
    reason: str
    message: str
    news: bool


def in_line(session: Session, due: ColumnElement[bool], elsewhere: Collection[str]) -> list[Held]:
    """The runs of several pods that are `due` and wait for another one; those that wait `elsewhere` do not count."""
    first = session.scalar(
        select(Run.name).where(Run.phase.in_([Phase.SUBMITTING, Phase.PENDING]), Run.nodes > 1).limit(1)
    )
    waiting = (
        select(Run.id, Run.name, Run.phase, Run.message)
        .join(Outbox, (Outbox.run_id == Run.id) & (Outbox.op == CREATE))
        .where(Run.nodes > 1, due, Run.phase != Phase.SUBMITTING, Run.id.not_in([*elsewhere]))
        .order_by(Outbox.due_at, Run.id)
    )
    line = [*session.execute(waiting)]
    if first is None and line:
        first = line.pop(0).name
    held: list[Held] = []
    for place, one in enumerate(line, 1):
        told = f"place {place} in line: all pods of {first!r} must find their places first"
        held.append(Held(one.id, one.phase, REASON, told, news=one.phase == Phase.QUEUED and one.message != told))
    return held
