"""The store: opened and migrated at start, read by anyone, written by one thread. It knows no cluster and no HTTP."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from sqlalchemy import select, text
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from controlplane.domain.errors import StoreUnavailable
from controlplane.store.folder import DataFolder
from controlplane.store.migrate import migrate
from controlplane.store.signals import Signals
from controlplane.store.sqlite import open_engine
from controlplane.store.tables import Installation
from controlplane.store.writer import Transaction, Writer

T = TypeVar("T")
DATABASE = "state.db"


class Store:
    """Everything that is remembered, in the data folder `home`, which this process holds until `close`.

    Raises the StoreErrors of `controlplane.domain.errors` where the folder cannot be used.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.signals = Signals()
        self._folder = DataFolder(home)
        self._engine = open_engine(home / DATABASE)
        try:
            migrate(self._engine, home / DATABASE)
        except DatabaseError as error:
            self._release()
            raise StoreUnavailable(f"{home / DATABASE} cannot be used: {error.orig}") from None
        except BaseException:
            self._release()
            raise
        self._writer = Writer(self._engine, self.signals)

    @property
    def installation(self) -> str:
        """What tells this installation's objects from another's; made with the store, and as old as that."""
        with self.read() as session:
            return session.scalars(select(Installation.id)).one()

    @contextmanager
    def read(self) -> Generator[Session]:
        """A session that sees one moment of the store. Keep it short, and never over a call to a cluster."""
        with Session(self._engine, expire_on_commit=False) as session:
            yield session

    def write(self, job: Callable[[Transaction], T]) -> T:
        """Run `job` in the writer's thread; its result comes back once it is durable. Raises what `job` raises."""
        return self._writer.write(job)

    def ping(self) -> None:
        """Raise StoreUnavailable where the database does not answer."""
        try:
            with self.read() as session:
                session.execute(text("SELECT 1"))
        except DatabaseError as error:
            raise StoreUnavailable(f"the database cannot be read: {error.orig}") from None

    def close(self) -> None:
        """Finish what was begun, and give the folder back."""
        self._writer.close()
        self._release()

    def _release(self) -> None:
        self._engine.dispose()
        self._folder.release()
