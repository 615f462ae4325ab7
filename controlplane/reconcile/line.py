"""The line before a cluster that places pods one by one: docs/lifecycle.md, "Whole or not at all".

Several objects of several pods could each hold half of their places for ever. So one is made at a time, in the order in
which they became due, and the next when all pods of the one before have their places.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, not_, select
from sqlalchemy.orm import Session

from controlplane.clusters.base import Cluster
from controlplane.domain.phases import TURN, Phase
from controlplane.store.moves import CREATE, move
from controlplane.store.store import Ledger
from controlplane.store.tables import Outbox, Run

REASON = "WaitsForTurn"


class Line:
    """Who of the runs of several pods is to wait. `contended` after each `hold`: whether anyone does."""

    def __init__(self, store: Ledger, cluster: Cluster) -> None:
        self._store, self._cluster = store, cluster
        self.contended = False

    def hold(self, session: Session, due: ColumnElement[bool], now: float) -> list[ColumnElement[bool]]:
        """What keeps the outbox from rows that are `due` and still have to wait. Tells their runs for whom they do."""
        self.contended = False
        if self._cluster.traits().gang:
            return []
        first = session.scalar(
            select(Run.name).where(Run.phase.in_([Phase.SUBMITTING, Phase.PENDING]), Run.nodes > 1).limit(1)
        )
        waiting = (
            select(Run.id, Run.name, Run.phase, Run.message)
            .join(Outbox, (Outbox.run_id == Run.id) & (Outbox.op == CREATE))
            .where(Run.nodes > 1, due, Run.phase != Phase.SUBMITTING)
            .order_by(Outbox.due_at, Run.id)
        )
        line = [*session.execute(waiting)]
        if first is None and line:
            first = line.pop(0).name
        self.contended = bool(line)
        for place, one in enumerate(line, 1):
            told = f"place {place} in line: all pods of {first!r} must find their places first"
            if one.phase == Phase.QUEUED and one.message != told:
                self._tell(one.id, told, now)
        held = [one.id for one in line]
        return [not_(and_(Outbox.op == CREATE, Outbox.run_id.in_(held)))] if held else []

    def _tell(self, run_id: str, told: str, now: float) -> None:
        self._store.write(lambda transaction: move(transaction, run_id, TURN, now, reason=REASON, message=told))
