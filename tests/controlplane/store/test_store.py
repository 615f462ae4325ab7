from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event, func, inspect, select, text, update

from controlplane.domain.errors import FolderLocked, NetworkFolder, NewerStore, StoreUnavailable
from controlplane.domain.spec import parse_spec
from controlplane.services import runs
from controlplane.services.context import Context
from controlplane.store import folder as folders
from controlplane.store import writer
from controlplane.store.folder import file_system
from controlplane.store.migrate import FOLDER
from controlplane.store.sqlite import open_engine
from controlplane.store.store import DATABASE, Store
from controlplane.store.tables import Attempt, Base, Outbox, Run
from controlplane.store.writer import Transaction
from tests.controlplane.postgres import ON_SQLITE

HOLD = """
import sys, time
from pathlib import Path
from controlplane.store.store import Store
store = Store(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""

ASK = """
import sys
from pathlib import Path
from controlplane.domain.spec import parse_spec
from controlplane.services import runs
from controlplane.services.context import Context
from controlplane.store.store import Store
from tests.controlplane.memory_cluster import MemoryCluster
store = Store(Path(sys.argv[1]))
context = Context(store, MemoryCluster(), store.home, "http://127.0.0.1:1")
while True:
    print(runs.create_run(context, parse_spec({"size": "tiny"}))[0].id, flush=True)
"""


def start(script: str, home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, str(home)], stdout=subprocess.PIPE, text=True)


def test_a_new_folder_gets_the_tables_of_this_version(tmp_path: Path) -> None:
    store = Store(tmp_path / "a" / "b")
    store.ping()
    with store.read() as session:
        connection = session.connection()
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        found = compare_metadata(MigrationContext.configure(connection), Base.metadata)
        assert [(what, index.name) for what, index in found] == [("add_index", "ix_runs_shown")]  # Postgres' alone
    store.close()


def test_an_existing_database_is_kept_and_each_migration_can_be_taken_one_by_one(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        connection.execute("CREATE TABLE mine (x)")
    store = Store(tmp_path)
    with store.read() as session:
        assert "mine" in inspect(session.connection()).get_table_names()
    store.close()


def test_every_migration_can_be_undone(tmp_path: Path) -> None:
    from alembic import command

    engine = open_engine(tmp_path / "x.db")
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    assert len(list(ScriptDirectory.from_config(config).walk_revisions())) >= 1
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        command.downgrade(config, "base")
        assert set(inspect(connection).get_table_names()) <= {"alembic_version"}
        command.upgrade(config, "head")
        assert "runs" in inspect(connection).get_table_names()
    engine.dispose()


def test_a_database_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(NewerStore, match="newer teragpt"):
        Store(tmp_path)
    with pytest.raises(NewerStore):  # and the folder was given back
        Store(tmp_path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(StoreUnavailable, match="not a database"):
        Store(tmp_path)


def test_a_folder_is_held_by_one_process_whose_id_the_other_is_told(tmp_path: Path) -> None:
    holder = start(HOLD, tmp_path)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FolderLocked, match=f"in use by process {holder.pid}"):
            Store(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    Store(tmp_path).close()  # the death of the holder frees it


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="cannot be used"):
        Store(tmp_path / "file" / "home")


def test_nobody_else_reads_the_database_also_in_a_folder_that_all_may_look_into(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)

    def modes() -> dict[str, int]:
        return {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob(f"{DATABASE}*")}

    private = dict.fromkeys((DATABASE, f"{DATABASE}-shm", f"{DATABASE}-wal"), 0o600)
    store = Store(tmp_path)
    store.ping()
    assert modes() == private
    left = {path: path.read_bytes() for path in tmp_path.glob(f"{DATABASE}*")}
    store.close()
    for path, content in left.items():  # as a killed process of an earlier version left them
        path.write_bytes(content)
        path.chmod(0o644)
    store = Store(tmp_path)
    store.ping()
    assert modes() == private
    store.close()


def test_a_database_that_cannot_be_made_is_refused_and_the_folder_given_back(tmp_path: Path) -> None:
    (tmp_path / DATABASE).symlink_to("nowhere/state.db")
    with pytest.raises(StoreUnavailable, match=r"state\.db cannot be used: No such file or directory"):
        Store(tmp_path)
    (tmp_path / DATABASE).unlink()
    Store(tmp_path).close()


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "NETWORK", {file_system(tmp_path, Path("/proc/self/mounts").read_text())})
    with pytest.raises(NetworkFolder, match="network file system"):
        Store(tmp_path)


def test_the_closest_mount_point_tells_the_file_system() -> None:
    mounts = "/dev/a / ext4 rw 0 0\nserver:/x /home nfs4 rw 0 0\n/dev/b /home/my\\040data xfs rw 0 0\n"
    assert file_system(Path("/srv"), mounts) == "ext4"
    assert file_system(Path("/home/you"), mounts) == "nfs4"
    assert file_system(Path("/home/my data/x"), mounts) == "xfs"


def test_kill_9_loses_no_run_that_was_answered(tmp_path: Path) -> None:
    asking = start(ASK, tmp_path)
    assert asking.stdout is not None
    answered = [asking.stdout.readline().strip() for _ in range(20)]
    asking.send_signal(signal.SIGKILL)
    rest, _ = asking.communicate()
    answered += [line for line in rest.splitlines() if len(line) == len(answered[0])]
    store = Store(tmp_path)
    with store.read() as session:
        stored = set(session.scalars(select(Run.id)))
        attempts = session.scalar(text("SELECT count(*) FROM attempts"))
        rows = session.scalar(text("SELECT count(*) FROM outbox"))
    store.close()
    assert set(answered) <= stored
    assert len(stored) == attempts == rows


def add(transaction: Transaction, number: int) -> int:
    transaction.session.execute(text("INSERT INTO counted VALUES (:n)"), {"n": number})
    return number


def test_writes_of_many_threads_all_count_and_are_grouped(store: Store) -> None:
    store.write(lambda t: t.session.execute(text("CREATE TABLE counted (n INTEGER)")))
    with ThreadPoolExecutor(32) as pool:
        assert sorted(pool.map(lambda n: store.write(lambda t: add(t, n)), range(400))) == list(range(400))
    with store.read() as session:
        assert session.scalar(text("SELECT count(*) FROM counted")) == 400


def test_a_write_that_fails_takes_nothing_of_the_others_with_it(store: Store) -> None:
    store.write(lambda t: t.session.execute(text("CREATE TABLE counted (n INTEGER)")))
    gate = threading.Event()

    def fails(transaction: Transaction) -> None:
        add(transaction, -1)
        raise ZeroDivisionError

    with ThreadPoolExecutor(3) as pool:
        pool.submit(store.write, lambda _: gate.wait(10))
        bad = pool.submit(store.write, fails)
        good = pool.submit(store.write, lambda t: add(t, 1))
        gate.set()
        with pytest.raises(ZeroDivisionError):
            bad.result()
        assert good.result() == 1
    with store.read() as session:
        assert session.scalars(text("SELECT n FROM counted")).all() == [1]


def test_of_writes_done_together_one_that_fails_half_way_leaves_nothing_and_the_others_all(
    store: Store, context: Context
) -> None:
    """Alone in its transaction, a kind of writes has no savepoint until one of them has failed."""
    run = runs.create_run(context, parse_spec({"size": "tiny", "name": "first"}))[0].id
    told: list[tuple[bool, int]] = []

    def rename(transaction: Transaction, names: Sequence[str]) -> list[str]:
        told.append((transaction.session.connection().in_nested_transaction(), len(names)))
        for name in names:
            transaction.session.execute(update(Run).where(Run.id == run).values(name=name))
            if name == "bad":
                raise ValueError(name)
            transaction.session.execute(update(Run).where(Run.id == run).values(notes=name))
        return [name.upper() for name in names]

    assert store.together(rename, "zero").result() == "ZERO"
    assert told == [(False, 1)]
    with store._writer._busy:
        done = [store.together(rename, name) for name in ("one", "bad", "two")]
    assert (done[0].result(), done[2].result()) == ("ONE", "TWO")
    with pytest.raises(ValueError, match="bad"):
        done[1].result()
    found = runs.get(context, run)
    assert (found.name, found.notes) == ("two", "two")
    assert not told[1][0]
    assert (True, 1) in told


@ON_SQLITE
def test_a_database_that_cannot_be_written_is_told_to_everyone_and_works_again_later(store: Store) -> None:
    other = sqlite3.connect(store.home / DATABASE, isolation_level=None)
    store.write(lambda t: t.session.execute(text("PRAGMA busy_timeout=1")))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        store.write(lambda t: t.session.execute(text("CREATE TABLE never (n INTEGER)")))
    other.execute("ROLLBACK")
    other.close()
    store.write(lambda t: t.session.execute(text("CREATE TABLE later (n INTEGER)")))


@ON_SQLITE
def test_a_full_disk_is_said_and_leaves_nothing_half_written(store: Store, context: Context) -> None:
    spec = parse_spec({"size": "tiny"})
    runs.create_run(context, spec)

    def limit(more: int) -> None:
        def job(transaction: Transaction) -> None:
            pages = transaction.session.scalar(text("PRAGMA page_count"))
            transaction.session.execute(text(f"PRAGMA max_page_count={pages + more}"))

        store.write(job)

    def counted() -> list[int | None]:
        with store.read() as session:
            return [session.scalar(select(func.count()).select_from(table)) for table in (Run, Attempt, Outbox)]

    def ask_many() -> None:
        for _ in range(100):
            runs.create_run(context, spec)

    limit(2)
    with pytest.raises(StoreUnavailable, match="full"):
        ask_many()
    assert len(set(counted())) == 1
    before = counted()[0]
    limit(10_000)
    runs.create_run(context, spec)
    assert before is not None
    assert counted() == [before + 1] * 3


def test_a_group_has_a_bound_and_the_close_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "LARGEST_GROUP", 2)
    store = Store(tmp_path)
    gate, began = threading.Event(), threading.Event()

    def wait(_: Transaction) -> None:
        began.set()
        gate.wait(10)

    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(store.write, wait)
        assert began.wait(10)
        others = [pool.submit(store.write, lambda _: 1) for _ in range(5)]
        while store._writer._jobs.qsize() < 5:
            threading.Event().wait(0.001)
        closed = pool.submit(store.close)
        gate.set()
        closed.result()
        first.result()
        assert [one.result() for one in others] == [1] * 5


def test_a_write_waits_for_the_next_where_writes_come_together(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "LARGEST_GROUP", 2)
    monkeypatch.setattr(writer, "GAP_S", 60)
    commits, gate = list[object](), threading.Event()
    event.listen(store._engine, "commit", commits.append)

    def queued(number: int) -> None:
        while store._writer._jobs.qsize() != number:
            threading.Event().wait(0.001)

    with ThreadPoolExecutor(8) as pool:
        alone = pool.submit(store.write, lambda _: gate.wait(10))
        queued(0)
        pair = [pool.submit(store.write, lambda _: 1) for _ in range(2)]
        queued(2)
        gate.set()
        assert alone.result()
        assert [one.result() for one in pair] == [1, 1]
        late = pool.submit(store.write, lambda _: 1)
        queued(0)
        pair = [late, pool.submit(store.write, lambda _: 1)]
        assert [one.result() for one in pair] == [1, 1]
    assert len(commits) == 3


def test_nothing_is_written_after_the_close(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.close()
    with pytest.raises(StoreUnavailable, match="shutting down"):
        store.write(lambda _: None)


def test_a_store_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for file in tmp_path.glob(f"{DATABASE}*"):
        file.write_bytes(os.urandom(8192))
    store._engine.dispose()
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        store.ping()
    store.close()


@ON_SQLITE
def test_listeners_hear_of_their_run_after_the_commit_and_not_after_they_left(store: Store) -> None:
    heard: list[str] = []

    def touch(transaction: Transaction) -> None:
        transaction.touched.add("a")

    with store.signals.listen("a", lambda: heard.append("a")), store.signals.listen("b", lambda: heard.append("b")):
        store.write(touch)
        assert heard == ["a"]
    store.write(touch)
    assert heard == ["a"]


def test_a_reader_keeps_few_pages_and_a_writer_as_many_as_a_group_of_writes_takes(tmp_path: Path) -> None:
    """Whichever it was before: the pool hands out the connection that was used last."""
    engine = open_engine(tmp_path / "state.db")
    found: list[int] = []
    for writes in (False, True, False):
        with engine.execution_options(writer=writes).begin() as connection:
            found.append(connection.exec_driver_sql("PRAGMA cache_size").scalar_one())
    engine.dispose()
    assert found == [-256, -2000, -256]
