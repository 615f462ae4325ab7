"""A SQLite store's copies while it is in use, and stores made of such copies. Each is whole or absent.

Postgres has its own means (`pg_dump`, archived logs), which see more than we do: nothing here is for it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from controlplane.domain.errors import NewerStore, NotRestored, StoreDamaged, StoreUnavailable
from controlplane.durable import sync_folder
from controlplane.store.folder import DataFolder
from controlplane.store.migrate import revisions

DRAFT = ".copy-"


def copy(database: Path, target: Path) -> None:
    """Write the database as it is at this moment to `target`, a file that is not there. Writers go on meanwhile.

    Raises StoreUnavailable, with nothing left behind, and StoreDamaged: a copy of what is damaged would take an earlier
    one's place.
    """
    draft = target.with_name(f"{DRAFT}{target.name}")
    try:
        with _gone_if_broken(draft):
            _copy(database, draft)
            if (found := _damage(draft)) is not None:
                raise StoreDamaged(f"{database} is damaged ({found}): keep the backups that are there")
            os.link(draft, target)  # fails where it is there, as a rename does not
        draft.unlink()
        sync_folder(target.parent)
    except (sqlite3.Error, OSError) as error:
        raise StoreUnavailable(f"{target} cannot be written: {error}") from None


def restore(backup: Path, home: Path, database: str) -> None:
    """Make the data folder `home` with the store of a backup. Raises NotRestored, NewerStore and StoreError.

    Nothing is overwritten: `home` must hold no store, and no control plane may work on it.
    """
    folder = DataFolder(home)
    try:
        for name in (database, f"{database}-wal"):
            if (home / name).exists():
                raise NotRestored(f"{home / name} is there: move it away, or restore to another folder with --home")
        _check(backup)
        copy(backup, home / database)
    finally:
        folder.release()


def vacuum(database: Path) -> tuple[int, int]:
    """Give unused pages back to the file system: bytes before and after. Nobody may write meanwhile."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        before = sum(_sizes(connection))
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return before, sum(_sizes(connection))


def sizes(database: Path) -> tuple[int, int]:
    """Bytes of a database that hold something, and bytes that a vacuum would give back. Raises StoreUnavailable."""
    try:
        with closing(_read_only(database)) as connection:
            return _sizes(connection)
    except sqlite3.Error as error:
        raise StoreUnavailable(f"{database} cannot be read: {error}") from None


def _sizes(connection: sqlite3.Connection) -> tuple[int, int]:
    size, pages, free = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count")
    )
    return size * (pages - free), size * free


def clear(home: Path) -> None:
    """Remove what copies that were broken off have left. Only for who holds the folder."""
    for left in home.glob(f"{DRAFT}*"):
        left.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    """By SQLite's own backup, in one step: one moment, however long it takes."""
    target.unlink(missing_ok=True)
    target.touch(0o600)  # tokens are in it
    with closing(_read_only(source)) as here, closing(sqlite3.connect(target, isolation_level=None)) as there:
        there.execute("PRAGMA synchronous=FULL")
        here.backup(there)
        there.execute("PRAGMA journal_mode=DELETE")  # one file, which can be read where nothing can be written


def _check(backup: Path) -> None:
    """Raise NotRestored for what is no whole store, NewerStore for one that this version cannot read."""
    if not backup.is_file():
        raise NotRestored(f"{backup} is no file: give one that `teragpt backup` has made")
    try:
        with closing(_read_only(backup)) as connection:
            found = _damage(backup)
            revision = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error as error:
        raise NotRestored(f"{backup} is no backup of a store: {error}") from None
    if found is not None:
        raise NotRestored(f"{backup} is damaged: {found}")
    if revision is None or revision[0] not in revisions():
        raise NewerStore(str(backup), revision[0] if revision else "unknown")


def _damage(database: Path) -> str | None:
    """What is wrong with a database that nobody writes; None where it is whole. Raises sqlite3.Error, OSError."""
    with closing(_read_only(database)) as connection:
        size, pages = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count"))
        found = str(connection.execute("PRAGMA integrity_check(1)").fetchone()[0]).replace("\n", " ")
    if (there := database.stat().st_size) != size * pages:  # SQLite takes what a cut page lacks for zeros
        return f"it has {there} of {size * pages} bytes"
    return None if found == "ok" else found


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)


@contextmanager
def _gone_if_broken(path: Path) -> Generator[None]:
    try:
        yield
    except BaseException:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise
