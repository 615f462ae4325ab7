"""Copies of a store in use, stores made of copies, and unused space."""

from __future__ import annotations

import re
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from controlplane.domain.errors import FolderLocked, NewerStore, NotRestored, OnPostgres, StoreDamaged, StoreUnavailable
from controlplane.services import runs
from controlplane.services.context import Context
from controlplane.services.views import RunView
from controlplane.store.copies import copy, restore
from controlplane.store.store import DATABASE, Store
from controlplane.store.tables import Event
from tests.controlplane.memory_cluster import MemoryCluster
from tests.controlplane.postgres import ON_SQLITE


def note(store: Store, run: RunView, seq: int, size: int = 1) -> None:
    store.write(
        lambda transaction: transaction.session.add(
            Event(run_id=run.id, seq=seq, time=1.0, kind="note", message="x" * size, data={})
        )
    )


@ON_SQLITE
def test_a_restored_copy_holds_what_was_there_when_it_was_made(context: Context, run: RunView, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    context.store.copy(backup)
    runs.cancel_run(context, run.id)
    restore(backup, tmp_path / "other", DATABASE)
    with closing(Store(tmp_path / "other")) as store:
        again = Context(store, MemoryCluster(), store.home, "http://localhost")
        assert runs.get(again, run.id).desired == "running"
        assert store.installation == context.store.installation
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup", "home", "other"]
    assert backup.stat().st_mode & 0o777 == 0o600


@ON_SQLITE
def test_a_copy_made_while_others_write_is_one_moment(context: Context, run: RunView, tmp_path: Path) -> None:
    over = threading.Event()

    def write() -> None:
        seq = 100
        while not over.is_set():
            note(context.store, run, seq, 2000)
            seq += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(5):
            context.store.copy(tmp_path / f"{number}")
    finally:
        over.set()
        thread.join()
    for number in range(5):
        restore(tmp_path / f"{number}", tmp_path / f"home{number}", DATABASE)
        with closing(sqlite3.connect(tmp_path / f"home{number}" / DATABASE)) as found:
            notes = [seq for (seq,) in found.execute("SELECT seq FROM events WHERE kind = 'note' ORDER BY seq")]
        assert notes == [*range(100, 100 + len(notes))]


@ON_SQLITE
def test_a_copy_overwrites_nothing_and_leaves_nothing_where_it_fails(context: Context, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("mine")
    with pytest.raises(StoreUnavailable, match="cannot be written"):
        context.store.copy(there)
    with pytest.raises(StoreUnavailable, match="cannot be written"):
        context.store.copy(tmp_path / "absent" / "file")
    assert there.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "there"]


@ON_SQLITE
def test_a_damaged_database_is_not_copied(context: Context, tmp_path: Path) -> None:
    context.store.copy(tmp_path / "whole")
    data = bytearray((tmp_path / "whole").read_bytes())
    data[4096 * 3 : 4096 * 6] = b"\xff" * (4096 * 3)
    (tmp_path / "damaged").write_bytes(data)
    with pytest.raises(StoreDamaged, match=r"damaged is damaged \(.*\): keep the backups that are there"):
        copy(tmp_path / "damaged", tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "home", "whole"]


@ON_SQLITE
def test_a_restore_overwrites_no_store_and_disturbs_no_control_plane(context: Context, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    context.store.copy(backup)
    with pytest.raises(FolderLocked):
        restore(backup, context.home, DATABASE)
    restore(backup, tmp_path / "other", DATABASE)
    before = (tmp_path / "other" / DATABASE).read_bytes()
    with pytest.raises(NotRestored, match=r"state\.db is there: move it away, or .* --home"):
        restore(backup, tmp_path / "other", DATABASE)
    assert (tmp_path / "other" / DATABASE).read_bytes() == before


@ON_SQLITE
@pytest.mark.parametrize("what", ["absent", "text", "damaged", "cut", "newer"])
def test_what_is_no_backup_of_this_version_is_refused(context: Context, tmp_path: Path, what: str) -> None:
    backup = tmp_path / "backup"
    if what == "text":
        backup.write_text("no database" * 100)
    elif what != "absent":
        context.store.copy(backup)
    if what == "damaged":
        with closing(sqlite3.connect(backup)) as found:
            size = found.execute("PRAGMA page_size").fetchone()[0]
        data = bytearray(backup.read_bytes())
        data[size * 2 : size * 4] = b"\xff" * (2 * size)
        backup.write_bytes(data)
    if what == "cut":
        backup.write_bytes(backup.read_bytes()[:-1])
    if what == "newer":
        with closing(sqlite3.connect(backup)) as found, found:
            found.execute("UPDATE alembic_version SET version_num = '9999'")
    expected: type[Exception] = NewerStore if what == "newer" else NotRestored
    with pytest.raises(expected, match=re.escape(str(backup))):
        restore(backup, tmp_path / "other", DATABASE)
    assert not (tmp_path / "other" / DATABASE).exists()


@ON_SQLITE
def test_a_vacuum_gives_space_back_while_writers_wait(context: Context, run: RunView) -> None:
    for seq in range(100, 120):
        note(context.store, run, seq, 100_000)
    context.store.write(lambda transaction: transaction.session.query(Event).filter(Event.kind == "note").delete())
    assert context.store.sizes()[1] > 1_000_000
    writer = threading.Thread(target=note, args=(context.store, run, 500))
    writer.start()
    before, after = context.store.vacuum()
    writer.join()
    assert after < before - 1_000_000
    assert sum(context.store.sizes()) < 1_000_000
    runs.cancel_run(context, run.id)


@pytest.mark.parametrize("store", ["postgres"], indirect=True)
def test_on_postgres_one_is_told_what_to_use(context: Context, tmp_path: Path) -> None:
    with pytest.raises(OnPostgres, match="pg_dump"):
        context.store.copy(tmp_path / "backup")
    with pytest.raises(OnPostgres, match="autovacuum"):
        context.store.vacuum()
    assert sum(context.store.sizes()) > 0


def test_what_a_copy_that_was_killed_has_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".copy-0123").write_text("half")
    Store(tmp_path).close()
    assert not [*tmp_path.glob(".copy-*")]
