"""All that is SQLite's own: the engine, its transactions and its pragmas. Postgres has the file beside this one.

Python's driver begins transactions by itself, too late for savepoints; so it is told not to, and SQLAlchemy says BEGIN.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from controlplane.domain.names import compact

CACHE_KB, WRITERS_KB = 256, 2000  # of a connection's pages: many read, each what the system's own cache has anyway
PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",  # a reply that says 201 survives a power cut
    "foreign_keys=ON",
    "busy_timeout=5000",
    "journal_size_limit=67108864",
)


def open_engine(path: Path) -> Engine:
    """An engine on the database file `path`, which is made where it is absent. Raises OSError."""
    keep_private(path)
    engine = create_engine(
        f"sqlite:///{path}",
        json_serializer=compact,
        poolclass=QueuePool,
        pool_size=8,
        max_overflow=64,
        pool_use_lifo=True,  # each connection that is used fills a cache: few are, while few read at once
    )
    event.listen(engine, "connect", _connected)
    event.listen(engine, "begin", _begin)
    return engine


def keep_private(path: Path) -> None:
    """Leave the database to its owner alone, since tokens are in it; SQLite makes its other files as that is."""
    path.touch(0o600)
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError, PermissionError):  # not there, or another user's who shares it by its group
            path.with_name(path.name + suffix).chmod(0o600)


def _connected(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
    connection.isolation_level = None
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: Connection) -> None:
    """Writers lock at once: a read that turns into a write could only fail."""
    writes = bool(connection.get_execution_options().get("writer"))
    driver: Any = connection.connection.driver_connection
    driver.execute(f"PRAGMA cache_size=-{WRITERS_KB if writes else CACHE_KB}").close()
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
