"""Many runs at once: what waits in a batch is made once each, whatever comes in between; looks are at what is new."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from controlplane.clusters.base import Manifest, Unavailable
from controlplane.reconcile import outbox, reconciler
from controlplane.reconcile.leases import submitted
from controlplane.store.tables import Outbox, Run
from tests.controlplane.reconcile.conftest import Stage

SEVERAL, BATCH = 21, 8


@pytest.fixture
def backlog(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Runs that wait for their objects, more than a batch of the outbox."""
    monkeypatch.setattr(outbox, "BATCH", BATCH)
    monkeypatch.setattr(reconciler, "OUTBOX_S", 60.0)  # on a loaded machine the second that a look has is too short
    for _ in range(SEVERAL):
        stage.ask(compute={"nodes": 1})
    return stage


def phases(stage: Stage) -> list[str]:
    with stage.context.store.read() as session:
        return [*session.scalars(select(Run.phase))]


def waiting(stage: Stage) -> list[Outbox]:
    with stage.context.store.read() as session:
        return [*session.scalars(select(Outbox))]


def test_a_backlog_is_made_whole_in_one_look(backlog: Stage) -> None:
    backlog.look()
    assert not waiting(backlog)
    assert phases(backlog) == ["pending"] * SEVERAL
    assert len(set(backlog.memory.created)) == len(backlog.memory.created) == SEVERAL
    assert backlog.transitions[:2] == [1, 3]


class Killed(BaseException):
    """kill -9, as far as a thread can tell."""


def test_what_a_killed_batch_had_made_is_adopted(backlog: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    create = backlog.memory.create

    def dying(manifest: Manifest, secret: Any = None) -> str:
        uid = create(manifest, secret)
        if len(backlog.memory.created) == BATCH - 1:
            raise Killed
        return uid

    monkeypatch.setattr(backlog.memory, "create", dying)
    with pytest.raises(Killed):
        backlog.look()
    monkeypatch.setattr(backlog.memory, "create", create)
    backlog.restart()
    backlog.look()
    assert not waiting(backlog)
    assert phases(backlog) == ["pending"] * SEVERAL
    assert len(set(backlog.memory.created)) == len(backlog.memory.created) == SEVERAL


def test_one_that_cannot_be_made_holds_up_no_other(backlog: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    create, name = backlog.memory.create, backlog.object

    def picky(manifest: Manifest, secret: Any = None) -> str:
        if manifest["metadata"]["name"] == name:
            raise Unavailable("not now")
        return create(manifest, secret)

    monkeypatch.setattr(backlog.memory, "create", picky)
    backlog.look()
    assert [row.object_name for row in waiting(backlog)] == [name]
    assert sorted(phases(backlog)) == ["pending"] * (SEVERAL - 1) + ["submitting"]
    assert backlog.run.reason == "ClusterUnreachable"


def test_nothing_is_stored_for_who_has_lost_the_lease(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.ask()
    create = stage.memory.create

    def slow(manifest: Manifest, secret: Any = None) -> str:
        uid = create(manifest, secret)
        stage.cancel()
        stage.context.store.write(
            lambda transaction: transaction.session.connection().execute(
                Outbox.__table__.update().values(lease="another's")  # type: ignore[attr-defined]
            )
        )
        return uid

    monkeypatch.setattr(stage.memory, "create", slow)
    stage.look()
    assert stage.run.phase == "cancelling"
    assert stage.attempt.uid is None
    row = Outbox(run_id=stage.id, attempt=1, op="create", lease="mine")
    stage.context.store.write(lambda transaction: submitted(transaction, [(row, "uid")], stage.clock()))
    assert stage.attempt.uid is None


def test_a_look_at_news_sees_what_the_cluster_and_the_store_have_new(stage: Stage) -> None:
    def news() -> str:
        stage.reconciler.step(whole=False)
        return stage.run.phase

    stage.ask()
    assert news() == "pending"
    stage.memory.run(stage.object)
    assert news() == "running"
    assert [pod.phase for pod in stage.attempt.pods] == ["Running"]
    stage.cancel()
    assert news() == "cancelling"
    stage.memory.stop(stage.object)
    assert "cancelled" in [news() for _ in range(3)]


def test_a_look_at_news_ends_what_came_late_and_misses_what_is_gone_only_twice(running: Stage) -> None:
    running.look()
    running.memory.vanish(running.object)
    running.reconciler.step(whole=False)
    assert running.run.phase == "running"
    running.reconciler.step(whole=False)
    assert running.run.phase == "restarting"


def test_what_a_look_that_broke_off_had_seen_is_seen_again(running: Stage) -> None:
    running.look()
    running.memory.end(running.object, 1)
    running.memory.fail = Unavailable("away")
    running.reconciler.step(whole=False)
    running.memory.fail = None
    running.reconciler.step(whole=False)
    assert running.run.phase == "restarting"
