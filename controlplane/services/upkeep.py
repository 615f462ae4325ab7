"""The store's upkeep: how large it is, copies of it, unused space given back."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import BinaryIO

from sqlalchemy import func, select

from controlplane.services.context import Context
from controlplane.services.retention import due
from controlplane.store.copies import DRAFT
from controlplane.store.tables import Run


@dataclass(frozen=True)
class RetentionState:
    """After how many days runs are deleted and purged, 0 for never, and which are due to be at the next turn."""

    delete_after_days: float
    purge_after_days: float
    due_for_deletion: list[str]
    due_for_purge: list[str]


@dataclass(frozen=True)
class StoreState:
    """The store: what it is, its schema's `revision`, its size in bytes and what of that a vacuum would give back."""

    database: str
    revision: str
    bytes: int
    reclaimable_bytes: int
    runs: int
    retention: RetentionState


def state(context: Context) -> StoreState:
    """The store as it is now."""
    used, free = context.store.sizes()
    with context.store.read() as session:
        runs = session.scalar(select(func.count()).select_from(Run)) or 0
    found, kept = due(context), context.retention
    retention = RetentionState(kept.delete_after_days, kept.purge_after_days, found.deletions, found.purges)
    database = "postgres" if context.store.shared else "sqlite"
    return StoreState(database, context.store.revision, used + free, free, runs, retention)


def backup(context: Context) -> BinaryIO:
    """A copy of the store as it is at this moment, in a file that is gone once it is closed. Raises OnPostgres."""
    path = context.home / f"{DRAFT}{secrets.token_hex(8)}"
    context.store.copy(path)
    try:
        return path.open("rb")
    finally:
        path.unlink()


def vacuum(context: Context) -> tuple[int, int]:
    """Give unused space back to the file system; bytes before and after. Writes wait meanwhile."""
    return context.store.vacuum()
