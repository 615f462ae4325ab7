"""Two processes on one database, as two stores: who leads, and what a leader may still write once another one does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from controlplane.domain.errors import Superseded
from controlplane.domain.spec import parse_spec
from controlplane.services import runs
from controlplane.services.context import Context
from controlplane.store import leadership
from controlplane.store.leadership import Term, holder, take
from controlplane.store.moves import get_run
from controlplane.store.store import Store
from controlplane.store.tables import Leader, Run
from controlplane.store.writer import Transaction
from tests.controlplane.memory_cluster import MemoryCluster

LEASE_S = 600.0  # longer than any test


@pytest.fixture
def one(tmp_path: Path, database: str) -> Iterator[Store]:
    store = Store(tmp_path / "one", database)
    yield store
    store.close()


@pytest.fixture
def other(tmp_path: Path, database: str) -> Iterator[Store]:
    store = Store(tmp_path / "other", database)
    yield store
    store.close()


def lead(store: Store, name: str = "one", lease_s: float = LEASE_S) -> Term:
    term = take(store, name, lease_s)
    assert term is not None
    return term


def expire(store: Store) -> None:
    """Let the leader's lease be over, as the database's clock sees it."""
    store.alone(lambda connection: connection.exec_driver_sql("UPDATE leader SET expires_at = 0"))


def suspend_all(transaction: Transaction) -> None:
    for run in transaction.session.scalars(select(Run)):
        run.message = "written"


def test_one_of_two_leads_until_its_lease_is_over(one: Store, other: Store) -> None:
    first = lead(one)
    assert take(other, "other", LEASE_S) is None
    with other.read() as session:
        name, left = holder(session)
    assert (name, 0 < left <= LEASE_S) == ("one", True)
    expire(one)
    second = lead(other, "other")
    assert second.epoch == first.epoch + 1
    assert take(one, "one", LEASE_S) is None


def test_a_leader_that_ends_its_term_is_followed_at_once(one: Store, other: Store) -> None:
    lead(one).end()
    lead(other, "other")


def test_a_lease_is_renewed_by_its_holder_alone(one: Store, other: Store) -> None:
    first = lead(one)
    expire(one)
    assert first.renew()  # nobody else was there
    assert take(other, "other", LEASE_S) is None
    expire(one)
    lead(other, "other")
    assert not first.renew()
    first.end()  # ends no other's
    assert take(one, "one", LEASE_S) is None


def test_what_a_former_leader_writes_is_refused_and_nothing_of_it_is_stored(one: Store, other: Store) -> None:
    run, _ = runs.create_run(Context(one, MemoryCluster(), one.home, "http://x"), parse_spec({"size": "tiny"}))
    first = lead(one)
    expire(one)
    second = lead(other, "other")
    with pytest.raises(Superseded, match="does not lead any more"):
        first.write(suspend_all)
    with other.read() as session:
        assert session.get_one(Run, run.id).message is None
    second.write(suspend_all)
    with one.read() as session:
        assert session.get_one(Run, run.id).message == "written"


def test_a_former_leader_calls_no_cluster_before_it_knows(one: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    term = lead(one, lease_s=30.0)
    term.confirm()
    now = leadership.boot_time() + 30.0
    monkeypatch.setattr(leadership, "boot_time", lambda: now)
    with pytest.raises(Superseded):
        term.confirm()
    assert term.renew()
    term.confirm()


def is_locked(store: Store, update: str) -> bool:
    """Whether another process's update has to wait."""
    try:
        with store._engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL lock_timeout = '100ms'")
            connection.exec_driver_sql(update)
    except OperationalError as error:
        return "lock timeout" in str(error)
    return False


def test_nobody_takes_over_in_the_middle_of_a_leaders_write_and_renewing_does_not_wait(
    one: Store, other: Store
) -> None:
    first = lead(one)

    def job(_: Transaction) -> tuple[bool, bool]:
        return is_locked(other, "UPDATE leader SET epoch = epoch + 1"), first.renew()

    assert first.write(job) == (True, True)


def test_a_run_that_one_process_is_about_to_change_is_changed_by_no_other(one: Store, other: Store) -> None:
    """So of a cancel and a run's end at once, whichever is stored first wins, and the other one sees it."""
    run, _ = runs.create_run(Context(one, MemoryCluster(), one.home, "http://x"), parse_spec({"size": "tiny"}))

    def job(transaction: Transaction) -> bool:
        get_run(transaction, run.id)
        return is_locked(other, "UPDATE runs SET desired = 'cancelled'")

    assert one.write(job)
    assert not is_locked(other, "UPDATE runs SET desired = 'cancelled'")


def test_the_row_is_one(one: Store, other: Store) -> None:
    for store in (one, other):
        take(store, "x", LEASE_S)
        expire(store)
    with one.read() as session:
        assert session.scalar(select(func.count()).select_from(Leader)) == 1
