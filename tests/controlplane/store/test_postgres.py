"""Several processes on one Postgres database, and a database that is away."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, inspect, select, text

from controlplane.domain.errors import NameInUse, NewerStore, StoreUnavailable
from controlplane.domain.spec import parse_spec
from controlplane.services import lists, metrics, runs, state
from controlplane.services.context import Context
from controlplane.store import store as module
from controlplane.store.postgres import address
from controlplane.store.store import Store
from controlplane.store.tables import Base, Installation, Run
from controlplane.store.writer import Transaction
from tests.controlplane import postgres
from tests.controlplane.clusters.kubernetes.hands import eventually
from tests.controlplane.memory_cluster import MemoryCluster

TINY = parse_spec({"size": "tiny"})


@pytest.fixture
def pair(tmp_path: Path, database: str) -> Iterator[tuple[Context, Context]]:
    """Two processes' views of one store."""
    stores = [Store(tmp_path / name, database) for name in ("one", "other")]
    one, other = (Context(store, MemoryCluster(), store.home, "http://x") for store in stores)
    yield one, other
    for store in stores:
        store.close()


@pytest.fixture
def server(postgres_server: postgres.Server) -> Iterator[postgres.Server]:
    """A server that a test may stop; it runs again afterwards."""
    yield postgres_server
    if postgres_server.stopped:
        postgres_server.start()


def test_processes_that_start_at_once_make_the_tables_once(tmp_path: Path, postgres_server: postgres.Server) -> None:
    with postgres_server.database() as url, ThreadPoolExecutor(3) as pool:
        stores = [*pool.map(lambda number: Store(tmp_path / str(number), url), range(3))]
        with stores[0].read() as session:
            assert session.scalar(select(func.count()).select_from(Installation)) == 1
            assert "ix_runs_shown" in [one["name"] for one in inspect(session.connection()).get_indexes("runs")]
            found = compare_metadata(MigrationContext.configure(session.connection()), Base.metadata)
            assert [(what, index.name) for what, index in found] == [("add_index", "ix_runs_listed")]  # SQLite's alone
        for store in stores:
            store.close()


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path, postgres_server: postgres.Server) -> None:
    with postgres_server.database() as url:
        store = Store(tmp_path, url)
        store.alone(lambda connection: connection.execute(text("UPDATE alembic_version SET version_num = '9999'")))
        store.close()
        with pytest.raises(NewerStore, match=r"the database test_\w+ at 127.0.0.1 was written by a newer teragpt"):
            Store(tmp_path, url)


def test_an_idempotency_key_makes_one_run_whichever_process_it_reaches(pair: tuple[Context, Context]) -> None:
    def ask(number: int) -> str:
        return runs.create_run(pair[number % 2], TINY, idempotency_key=f"key-{number // 8}")[0].id

    with ThreadPoolExecutor(16) as pool:
        made = [*pool.map(ask, range(64))]
    assert len(set(made)) == 8
    assert all(len(set(made[start : start + 8])) == 1 for start in range(0, 64, 8))


def test_a_name_belongs_to_one_live_run_whichever_process_is_asked(pair: tuple[Context, Context]) -> None:
    spec = parse_spec({"size": "tiny", "name": "mine"})

    def ask(number: int) -> str:
        try:
            return runs.create_run(pair[number % 2], spec)[0].id
        except NameInUse as error:
            return error.holder

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(ask, range(32)))) == 1


def test_a_point_that_reaches_two_processes_is_stored_once(pair: tuple[Context, Context]) -> None:
    run, _ = runs.create_run(pair[0], TINY)
    points = [{"seq": seq, "step": seq, "time": 1.0, "loss": 2.0} for seq in range(1, 101)]
    with ThreadPoolExecutor(8) as pool:
        told = [*pool.map(lambda number: metrics.add_metrics(pair[number % 2], run.id, 1, points).seq, range(16))]
    assert told == [100] * 16
    assert [point["seq"] for point in metrics.points_after(pair[0], run.id)] == list(range(1, 101))


def test_writes_that_would_wait_for_each_other_are_done_one_by_one(pair: tuple[Context, Context]) -> None:
    """Each process locks two runs in one commit, in opposite order: Postgres ends one of them, which is done again."""
    first, second = (runs.create_run(pair[0], TINY)[0].id for _ in range(2))
    both, gate, passed = threading.Barrier(2, timeout=20), threading.Event(), set[Path]()

    def touch(context: Context, run_id: str) -> None:
        def job(transaction: Transaction) -> None:
            transaction.session.execute(
                text("UPDATE runs SET last_event = last_event + 1 WHERE id = :id"), {"id": run_id}
            )
            if context.home not in passed:  # its first one, at its first try
                passed.add(context.home)
                both.wait()

        context.store.write(job)

    def hold(context: Context, began: threading.Event) -> None:
        def job(_: Transaction) -> None:
            began.set()
            gate.wait(20)

        context.store.write(job)

    with ThreadPoolExecutor(6) as pool:
        jobs: list[Future[None]] = []
        for context, order in zip(pair, ((first, second), (second, first)), strict=True):
            jobs.append(pool.submit(hold, context, began := threading.Event()))
            assert began.wait(20)
            queued = context.store._writer._jobs
            for place, run_id in enumerate(order, 1):
                jobs.append(pool.submit(touch, context, run_id))
                eventually(partial(lambda queued, place: queued.qsize() == place, queued, place))
        gate.set()
        for job in jobs:
            job.result()
    with pair[0].store.read() as session:
        assert {*session.scalars(select(Run.last_event))} == {3}


def test_what_one_process_stores_wakes_the_others(pair: tuple[Context, Context]) -> None:
    run, _ = runs.create_run(pair[0], TINY)
    heard, signals = threading.Event(), pair[1].store.signals
    work, other = signals.work.wait(), signals.work.wait()

    def told() -> bool:
        runs.create_run(pair[0], TINY)
        return work.wait(0.1)

    eventually(told)  # the listener is there
    with signals.listen(run.id, heard.set):
        work.clear()
        other.clear()
        heard.clear()
        runs.cancel_run(pair[0], run.id)
        assert heard.wait(20)
        assert work.wait(20)
        assert other.wait(20)  # each reconciler's own


def test_a_commit_of_very_many_runs_tells_the_others_of_each(pair: tuple[Context, Context]) -> None:
    many, news = {f"run_{number:026}" for number in range(1000)}, pair[1].store.signals.collect()
    heard: set[str] = set()

    def told() -> bool:
        pair[0].store.write(lambda transaction: transaction.touched.update(many))
        heard.update(news.take() or ())
        return heard == many

    assert eventually(told)


def test_texts_and_numbers_that_postgres_itself_would_refuse_are_kept(pair: tuple[Context, Context]) -> None:
    run, _ = runs.create_run(pair[0], TINY)

    def job(transaction: Transaction) -> None:
        row = transaction.session.get_one(Run, run.id)
        row.message, row.reason, row.progress = "a\0b", "r" * 1000, {"loss": float("inf"), "text": "\0\ud800"}

    pair[0].store.write(job)
    with pair[1].store.read() as session:
        row = session.get_one(Run, run.id)
        assert (row.message, row.reason) == ("a\ufffdb", "r" * 1000)
        assert row.progress == {"loss": float("inf"), "text": "\0\ud800"}
    assert lists.list_runs(pair[0], lists.Filter(name="a\0b", query="a\0b")).runs == []


def test_a_database_that_goes_away_is_said_and_comes_back_with_everything(
    pair: tuple[Context, Context], server: postgres.Server
) -> None:
    run, _ = runs.create_run(pair[0], TINY)
    server.stop(signal.SIGQUIT)
    with pytest.raises(StoreUnavailable, match="the database cannot be written: "):
        pair[0].store.write(lambda transaction: transaction.session.execute(select(Run)))
    with pytest.raises(StoreUnavailable, match="the database cannot be read: "):
        runs.get(pair[0], run.id)
    part = state.components(pair[1])["store"]
    assert (part.ready, part.essential) == (False, True)
    assert eventually(lambda: "Connection refused" in state.components(pair[1])["store"].detail)
    server.start()
    assert eventually(lambda: state.components(pair[1])["store"].ready)
    assert runs.cancel_run(pair[1], run.id).desired == "cancelled"
    assert pair[0].store.signals.work.wait().wait(20)  # nobody knows what was missed meanwhile


def test_a_database_that_is_away_at_the_start_is_waited_for(
    tmp_path: Path, server: postgres.Server, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.0)
    server.stop()
    store = Store(tmp_path, database)
    try:
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="Connection refused"):
                store.ping()
        with pytest.raises(StoreUnavailable):
            store.write(lambda _: None)
        server.start()
        store.ping()
        assert store.installation
    finally:
        store.close()


def test_what_is_said_of_a_database_shows_no_password(tmp_path: Path) -> None:
    url = "postgresql://me:hunter2@127.0.0.1:1/runs"
    assert "hunter2" not in str(address(url))
    store = Store(tmp_path, url)
    try:
        with pytest.raises(StoreUnavailable) as caught:
            store.ping()
        assert "hunter2" not in str(caught.value)
        assert str(caught.value).startswith("the database runs at 127.0.0.1 cannot be used: ")
    finally:
        store.close()
