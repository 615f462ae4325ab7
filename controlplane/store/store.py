"""The store: opened and migrated, read by anyone, written by one thread. It knows no cluster and no HTTP.

SQLite belongs to one process, which holds the data folder. A Postgres database may be shared by several, and may be
away at any time, at the start too: until it answers, everything raises StoreUnavailable, and then goes on.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from controlplane.domain.errors import OnPostgres, StoreError, StoreUnavailable
from controlplane.store import copies, postgres
from controlplane.store.folder import DataFolder
from controlplane.store.migrate import migrate, stored_revision
from controlplane.store.signals import Signals
from controlplane.store.sqlite import open_engine
from controlplane.store.tables import Installation
from controlplane.store.writer import AWAY, Transaction, Writer, unavailable

log = logging.getLogger(__name__)
T = TypeVar("T")
A = TypeVar("A")
DATABASE = "state.db"
CONNECTIONS = 16
AGAIN_S = 1.0  # between two looks for a database that is away


class Ledger(Protocol):
    """What the reconciler works on: the store, by whoever may write it now."""

    @property
    def signals(self) -> Signals:
        """Who wants to know of news."""
        ...

    def read(self) -> AbstractContextManager[Session]:
        """See `Store.read`."""
        ...

    def write(self, job: Callable[[Transaction], T]) -> T:
        """See `Store.write`. Raises Superseded, with nothing written, where another process leads."""
        ...

    def confirm(self) -> None:
        """Raise Superseded unless this process may act on the cluster at this moment."""
        ...


class Store:
    """Everything that is remembered; in the data folder `home`, which this process holds until `close`, or at `url`.

    `url`: a Postgres database, with so many `connections` for reading. Raises the StoreErrors of
    `controlplane.domain.errors` where the folder cannot be used, and NewerStore; a database that is away is waited for.
    """

    def __init__(self, home: Path, url: str = "", connections: int = CONNECTIONS) -> None:
        self.home, self.shared = home, bool(url)
        self.signals = Signals()
        self._folder = DataFolder(home)
        copies.clear(home)
        self._notices: postgres.Notices | None = None
        try:
            self._reader, self._engine = _engines(home, url, connections)
        except OSError as error:
            self._folder.release()
            raise StoreUnavailable(f"{home / DATABASE} cannot be used: {error.strerror or error}") from None
        self._place = _place(self._engine)
        self._ready = False
        self._opening = threading.Lock()
        self._trouble = ("", 0.0)  # what is wrong with the database, and since when it was looked at
        try:
            self._open()
        except BaseException as error:
            if not (self.shared and isinstance(error, StoreUnavailable)):
                self._release()
                raise
            log.warning("the store is waited for: %s", error)
        if self.shared:
            self._notices = postgres.Notices(self._engine, self.signals)
        self._writer = Writer(self._engine, self.signals, self._notices.tell if self._notices else None)

    @property
    def installation(self) -> str:
        """What tells this installation's objects from another's; made with the store, and as old as that."""
        with self.read() as session:
            return session.scalars(select(Installation.id)).one()

    @contextmanager
    def read(self) -> Generator[Session]:
        """A session that sees one moment of the store. Keep it short, and never over a call to a cluster.

        Raises StoreUnavailable where the database does not answer.
        """
        self._open()
        try:
            with Session(self._reader, expire_on_commit=False) as session:
                yield session
        except AWAY as error:
            raise unavailable("the database cannot be read", error) from None

    def write(self, job: Callable[[Transaction], T]) -> T:
        """Run `job` in the writer's thread; its result comes back once it is durable. Raises what `job` raises."""
        self._open()
        return self._writer.write(job)

    def together(self, job: Callable[[Transaction, Sequence[A]], Sequence[T | Exception]], of: A) -> Future[T]:
        """As `write`, with all that waits for the same `job`, and to be waited for: see `Writer.together`."""
        self._open()
        return self._writer.together(job, of)

    @property
    def opened(self) -> bool:
        """Whether the database has answered once, so that asking for a write waits for nothing."""
        return self._ready

    def alone(self, job: Callable[[Connection], T]) -> T:
        """Run `job` in a transaction of its own that waits for no other write of this process. For Postgres.

        Raises StoreUnavailable.
        """
        assert self.shared
        self._open()
        try:
            with self._engine.begin() as connection:
                return job(connection)
        except AWAY as error:
            raise unavailable("the database cannot be written", error) from None

    def confirm(self) -> None:
        """See `Ledger.confirm`: who holds the data folder may always act."""

    def ping(self) -> None:
        """Raise StoreUnavailable where the database does not answer."""
        try:
            with self.read() as session:
                session.execute(text("SELECT 1"))
        except DatabaseError as error:
            raise unavailable("the database cannot be read", error) from None

    @property
    def revision(self) -> str:
        """The revision of its tables. Raises StoreUnavailable."""
        self._open()
        return stored_revision(self._engine) or ""

    def sizes(self) -> tuple[int, int]:
        """Bytes that hold something, and bytes that a vacuum would give back. Raises StoreUnavailable."""
        self._open()
        if not self.shared:
            return copies.sizes(self.home / DATABASE)
        with self.read() as session:
            return session.scalar(text("SELECT pg_database_size(current_database())")) or 0, 0

    def copy(self, target: Path) -> None:
        """Write all of it, as it is at one moment, to a new file. Raises OnPostgres, StoreDamaged, StoreUnavailable."""
        if self.shared:
            raise OnPostgres("back it up with pg_dump")
        self._open()
        copies.copy(self.home / DATABASE, target)

    def vacuum(self) -> tuple[int, int]:
        """Give unused space back: bytes before and after; writes wait. Raises OnPostgres and StoreUnavailable."""
        if self.shared:
            raise OnPostgres("its autovacuum does this by itself; VACUUM FULL gives space back")
        self._open()
        try:
            with self._writer.resting():
                return copies.vacuum(self.home / DATABASE)
        except sqlite3.Error as error:
            raise StoreUnavailable(f"the database cannot be vacuumed: {error}") from None

    def close(self) -> None:
        """Finish what was begun, and give the folder back."""
        self._writer.close()
        if self._notices is not None:
            self._notices.close()
        self._release()

    def _open(self) -> None:
        """Bring the database to this version's tables, once it answers. Raises StoreError, soon, until then."""
        if self._ready:
            return
        told, since = self._trouble
        if told and (time.monotonic() < since + AGAIN_S or not self._opening.acquire(blocking=False)):
            raise StoreUnavailable(told)
        try:
            self._migrate()
        except StoreError as error:
            self._trouble = (str(error), time.monotonic())
            raise
        else:
            self._ready = True
        finally:
            if told:
                self._opening.release()

    def _migrate(self) -> None:
        try:
            if self.shared:
                migrate(self._engine, self._place, postgres.one_at_a_time)
            else:
                migrate(self._engine, self._place)
        except (DatabaseError, *AWAY) as error:
            raise unavailable(f"{self._place} cannot be used", error) from None

    def _release(self) -> None:
        self._reader.dispose()
        self._engine.dispose()
        self._folder.release()


def _engines(home: Path, url: str, connections: int) -> tuple[Engine, Engine]:
    """For reading and for writing. Raises OSError."""
    if url:
        return postgres.open_engines(url, connections)
    engine = open_engine(home / DATABASE)
    return engine, engine


def _place(engine: Engine) -> str:
    """The database as people call it; no password is in it."""
    if engine.dialect.name == "sqlite":
        return str(engine.url.database)
    return f"the database {engine.url.database} at {engine.url.host or 'localhost'}"
