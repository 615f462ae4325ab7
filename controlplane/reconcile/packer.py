"""Packs the points of runs that have ended, a block at a time, with a rest after each: nobody waits for it.

Of a run that is packed it records what its steps took beside its plan.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict

from sqlalchemy import select, update

from controlplane.domain.measured import SEEN, compare
from controlplane.reconcile.background import Background
from controlplane.store import history
from controlplane.store.store import Ledger
from controlplane.store.tables import MetricTier, Run
from controlplane.store.writer import Transaction

log = logging.getLogger(__name__)
IDLE_S = 60.0
REST = 1.0  # times what a block has taken


class Packer(Background):
    """Packs what the store `ledger` holds; `step` is one block, `start` and `stop` run it in a thread of its own."""

    idle_s, later, failed = IDLE_S, "points are packed later", "points could not be packed"

    def __init__(self, ledger: Ledger, *, clock: Callable[[], float] = time.time) -> None:
        self._ledger, self._clock = ledger, clock
        self._refused: set[str] = set()
        self._undrawn: list[str] | None = None
        super().__init__("packer")

    def step(self) -> bool:
        """Pack one block, or draw one run's tiers; whether there was anything. Raises StoreError."""
        with self._ledger.read() as session:
            if self._undrawn is None:
                self._undrawn = history.undrawn(session)
            run_id = history.ended_with_rows(session, self._clock(), self._refused)
        if run_id is not None:
            self._pack(run_id)
        elif self._undrawn:
            self._draw(self._undrawn.pop())
        return run_id is not None or bool(self._undrawn)

    def _pack(self, run_id: str) -> None:
        with self._ledger.read() as session:
            rows = history.next_points(session, run_id)
        try:
            block = history.packed_block(rows)
            self._ledger.write(lambda transaction: history.replace(transaction, block))
        except history.Moved:
            return
        except ValueError as error:  # what cannot be packed stays in rows
            log.warning("%s", error)
            self._refused.add(run_id)
            return
        with self._ledger.read() as session:
            if history.in_rows(session, run_id):
                return
            if history.long(session, run_id):
                self._undrawn = [*(self._undrawn or []), run_id]
        self._record(run_id)

    def _record(self, run_id: str) -> None:
        """Keep what the run's steps took beside its plan, where it has both."""
        with self._ledger.read() as session:
            resolved = session.scalar(select(Run.resolved).where(Run.id == run_id))
            if not resolved or "forecast" not in resolved.get("planned", {}):
                return
            found = compare(resolved, history.points_of(session, run_id, keys=SEEN))
        if found.measured:
            values = update(Run).where(Run.id == run_id).values(measured=asdict(found))
            self._ledger.write(lambda transaction: transaction.session.execute(values))

    def _draw(self, run_id: str) -> None:
        with self._ledger.read() as session:
            tiers = history.tiers_of(session, run_id)
        self._ledger.write(lambda transaction: _store(transaction, tiers))

    def turn(self) -> float:
        """See `Background.turn`."""
        started = time.monotonic()
        return REST * (time.monotonic() - started) if self.step() else IDLE_S


def _store(transaction: Transaction, tiers: list[MetricTier]) -> None:
    for tier in tiers:
        transaction.session.merge(MetricTier(run_id=tier.run_id, key=tier.key, data=tier.data))
    transaction.session.flush()
