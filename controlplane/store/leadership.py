"""Who leads: one row of the shared database, taken for a while at a time, by the database's own clock.

Every term has an epoch, greater than all before it. What a leader writes is written only while the row still holds its
epoch, and in the same transaction; the row cannot change hands before that has ended. So a leader that was paused, and
wakes when another one leads, writes nothing. Before it calls the cluster it looks at its own clock, which counts on
while it is paused.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

from sqlalchemy import Connection, Float, cast, func, select, update
from sqlalchemy.orm import Session

from controlplane.domain.errors import Superseded
from controlplane.store.signals import Signals
from controlplane.store.store import Store
from controlplane.store.tables import Leader
from controlplane.store.writer import Transaction

T = TypeVar("T")
NOW = cast(func.extract("epoch", func.clock_timestamp()), Float(53))


def boot_time() -> float:
    """Seconds on this machine's clock, which nobody sets and which counts while it sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Term:
    """The time for which this process leads: a `Ledger` that writes nothing once another one does."""

    def __init__(self, store: Store, epoch: int, lease_s: float, until: float) -> None:
        self.epoch = epoch
        self._store, self._lease_s, self._until = store, lease_s, until

    @property
    def signals(self) -> Signals:
        """See `Ledger.signals`."""
        return self._store.signals

    def read(self) -> AbstractContextManager[Session]:
        """See `Ledger.read`."""
        return self._store.read()

    def write(self, job: Callable[[Transaction], T]) -> T:
        """See `Ledger.write`."""

        def fenced(transaction: Transaction) -> T:
            ours = select(Leader.epoch).where(Leader.epoch == self.epoch).with_for_update(read=True, key_share=True)
            if transaction.session.scalar(ours) is None:
                raise Superseded(self.epoch)
            return job(transaction)

        return self._store.write(fenced)

    def confirm(self) -> None:
        """See `Ledger.confirm`."""
        if boot_time() >= self._until:
            raise Superseded(self.epoch)

    def renew(self) -> bool:
        """Lead for another lease; False where another process leads. Raises StoreUnavailable."""
        asked = boot_time()
        wanted = update(Leader).where(Leader.epoch == self.epoch).values(expires_at=NOW + self._lease_s)
        renewed = self._store.alone(lambda connection: connection.execute(wanted).rowcount == 1)
        if renewed:
            self._until = asked + self._lease_s
        return renewed

    def end(self) -> None:
        """Let another process lead at once. Raises StoreUnavailable."""
        self._until = 0.0
        over = update(Leader).where(Leader.epoch == self.epoch).values(holder="", expires_at=0.0)
        self._store.alone(lambda connection: connection.execute(over))


def take(store: Store, name: str, lease_s: float) -> Term | None:
    """Lead, as `name`, where the leader's lease is over; None where it is not. Raises StoreUnavailable."""
    asked = boot_time()
    wanted = (
        update(Leader)
        .where(Leader.expires_at <= NOW)
        .values(epoch=Leader.epoch + 1, holder=name, expires_at=NOW + lease_s)
        .returning(Leader.epoch)
    )

    def job(connection: Connection) -> int | None:
        epoch: int | None = connection.execute(wanted).scalar_one_or_none()
        return epoch

    epoch = store.alone(job)
    return None if epoch is None else Term(store, epoch, lease_s, asked + lease_s)


def holder(session: Session) -> tuple[str, float]:
    """Who leads, and for how many seconds its lease lasts; it has none where that is not positive."""
    name, left = session.execute(select(Leader.holder, Leader.expires_at - NOW)).one()
    return name, left
