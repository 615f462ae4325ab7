"""The thread: woken by what is stored and by the cluster, killed by nothing, idle when nothing lives."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import event, update

from controlplane.clusters.base import Unavailable
from controlplane.domain.errors import StoreUnavailable
from controlplane.domain.spec import parse_spec
from controlplane.reconcile import apply as applying
from controlplane.reconcile import reconciler as reconciling
from controlplane.reconcile.decide import Decision, Look, decide
from controlplane.reconcile.pace import Pace
from controlplane.reconcile.reconciler import Reconciler
from controlplane.services import runs
from controlplane.services.context import Context
from controlplane.services.views import RunView
from controlplane.store.tables import Attempt, Outbox, Run
from tests.controlplane.memory_cluster import MemoryCluster
from tests.controlplane.postgres import ON_SQLITE
from tests.controlplane.reconcile.conftest import SITE, Stage

NEVER = 3600.0  # a tick that does not come: only a hint can wake


def soon(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


@pytest.fixture
def threaded(context: Context, memory: MemoryCluster) -> Iterator[Reconciler]:
    pace = Pace(tick_s=NEVER, idle_s=NEVER, first_backoff_s=0.0)
    reconciler = Reconciler(context.store, memory, site=SITE, pace=pace)
    reconciler.start()
    yield reconciler
    reconciler.stop()


@pytest.mark.usefixtures("threaded")
def test_a_run_goes_through_its_life_on_hints_alone(context: Context, memory: MemoryCluster) -> None:
    context = Context(context.store, memory, context.home, context.url)
    run, _ = runs.create_run(context, parse_spec({"size": "tiny"}))
    name = run.kubernetes["name"]
    soon(lambda: name in memory.jobs)
    memory.run(name)
    soon(lambda: runs.get(context, run.id).phase == "running")
    memory.end(name, 0)
    soon(lambda: runs.get(context, run.id).phase == "succeeded")
    soon(lambda: memory.jobs == {})


@pytest.mark.usefixtures("threaded")
def test_a_cancel_wakes_the_thread(context: Context, memory: MemoryCluster) -> None:
    context = Context(context.store, memory, context.home, context.url)
    run, _ = runs.create_run(context, parse_spec({"size": "tiny"}))
    soon(lambda: run.kubernetes["name"] in memory.jobs)
    runs.cancel_run(context, run.id)
    soon(lambda: memory.jobs[run.kubernetes["name"]].deleting)


def test_a_look_that_fails_does_not_end_the_thread(
    context: Context, memory: MemoryCluster, caplog: pytest.LogCaptureFixture
) -> None:
    looks: list[int] = []

    class Trouble(Reconciler):
        def step(self, *, whole: bool = True) -> bool:
            looks.append(1)
            if len(looks) < 3:
                raise StoreUnavailable("disk full")
            return super().step(whole=whole)

    reconciler = Trouble(context.store, memory, site=SITE, pace=Pace(tick_s=0.01))
    reconciler.start()
    soon(lambda: len(looks) >= 3)
    reconciler.stop()
    assert "disk full" in caplog.text


def test_a_thread_that_never_started_can_be_stopped(stage: Stage) -> None:
    stage.reconciler.stop()


def test_one_runs_trouble_is_not_anothers(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    first = stage.ask()
    second = stage.ask()
    stage.look()

    def sometimes(look: Any) -> Any:
        if look.run.id == first.id:
            raise ZeroDivisionError
        return decide(look)

    monkeypatch.setattr(reconciling, "decide", sometimes)
    stage.memory.run(second.kubernetes["name"])
    assert stage.look().phase == "running"


def test_a_run_that_went_wrong_is_tried_again_without_any_news_of_it(
    context: Context, memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = Context(context.store, memory, context.home, context.url)
    monkeypatch.setattr(reconciling, "WHOLE_SHARE", 1e9)  # no look at everything comes before it
    pace = Pace(tick_s=0.01, longest_retry_backoff_s=0.05)
    tried: list[Look] = []

    def sometimes(look: Look) -> Decision | None:
        if look.run.phase == "pending" and look.job and look.job.pods[0].phase == "Running" and len(tried) < 3:
            tried.append(look)
            raise ZeroDivisionError
        return decide(look)

    monkeypatch.setattr(reconciling, "decide", sometimes)
    reconciler = Reconciler(context.store, memory, site=SITE, pace=pace)
    reconciler.start()
    try:
        run, _ = runs.create_run(context, parse_spec({"size": "tiny"}))
        soon(lambda: runs.get(context, run.id).phase == "pending")
        memory.run(run.kubernetes["name"])
        soon(lambda: runs.get(context, run.id).phase == "running")
    finally:
        reconciler.stop()
    assert len(tried) == 3


@pytest.mark.parametrize("op", ["create", "delete"])
def test_what_went_wrong_with_one_object_holds_up_no_other_and_is_tried_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, op: str
) -> None:
    first, second = stage.ask(), stage.ask()
    if op == "delete":
        stage.look()
        for run in (first, second):
            runs.cancel_run(stage.context, run.id)
    asked = getattr(stage.memory, op)

    def sometimes(*given: Any) -> Any:
        if first.kubernetes["name"] in str(given):
            raise ZeroDivisionError
        return asked(*given)

    with monkeypatch.context() as patched:
        patched.setattr(stage.memory, op, sometimes)
        stage.look(2)
        done = stage.memory.created if op == "create" else stage.memory.deleted
        assert set(done) == {second.kubernetes["name"]}
        assert runs.get(stage.context, first.id).phase == {"create": "submitting", "delete": "cancelling"}[op]
    stage.after(Pace().longest_submit_backoff_s)
    assert set(done) == {first.kubernetes["name"], second.kubernetes["name"]}


def test_the_stores_trouble_is_everyones(running: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> bool:
        raise StoreUnavailable("disk full")

    running.memory.end(running.object, 0)
    monkeypatch.setattr(reconciling, "apply", full)
    with pytest.raises(StoreUnavailable):
        running.look()


def test_nothing_is_decided_while_the_cluster_does_not_answer(running: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    running.memory.vanish(running.object)
    running.memory.fail = Unavailable("away")
    assert running.look(5).phase == "running"
    running.memory.fail = None
    assert running.look().phase == "running"
    assert running.look().phase == "restarting"
    told = [record.getMessage() for record in caplog.records if "answer" in record.getMessage()]
    assert told == ["cluster memory does not answer, nothing is decided: away", "cluster memory answers again"]


@ON_SQLITE
def test_a_look_at_idle_runs_writes_nothing_and_reads_no_finished_run(running: Stage) -> None:
    statements: list[tuple[str, Any]] = []
    engine = running.context.store._engine

    def record(*arguments: Any) -> None:
        if arguments[2] != "BEGIN":
            statements.append((arguments[2], arguments[3]))

    event.listen(engine, "before_cursor_execute", record)
    for _ in range(3):
        running.reconciler.step()
    event.remove(engine, "before_cursor_execute", record)
    assert len(statements) == 9  # what is due, who lives, and what is stored of these
    with running.context.store.read() as session:
        for statement, parameters in statements:
            assert statement.startswith("SELECT")
            plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            assert not any("SCAN runs" in row[3] or "SCAN attempts" in row[3] for row in plan), plan


def test_a_look_tells_whether_anything_lives(running: Stage) -> None:
    assert running.reconciler.step()
    running.memory.end(running.object, 0)
    assert running.reconciler.step()
    running.reconciler.step()
    assert not running.reconciler.step()


def test_a_late_creation_of_an_ended_attempt_is_swept(running: Stage) -> None:
    name, job = running.object, running.memory.jobs[running.object]
    running.memory.end(name, 0)
    running.look(2)
    running.memory.jobs[name] = job
    running.memory.fail = None
    running.look()
    assert running.memory.jobs[name].deleting


def test_a_sweep_that_the_cluster_does_not_answer_is_made_again(
    running: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, job = running.object, running.memory.jobs[running.object]
    running.memory.end(name, 0)
    running.look(2)
    running.memory.jobs[name] = job

    def away(*_: object) -> None:
        raise Unavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(running.memory, "delete", away)
        running.look()
    assert not running.memory.jobs[name].deleting
    running.look()
    assert running.memory.jobs[name].deleting


def test_objects_of_unknown_runs_are_reported_once_and_left_alone(
    running: Stage, caplog: pytest.LogCaptureFixture
) -> None:

    job = running.memory.jobs[running.object]
    running.memory.jobs["stranger-1"] = dataclasses.replace(job, name="stranger-1", run_id="run_else")
    running.look(3)
    assert not running.memory.jobs["stranger-1"].deleting
    assert [record.getMessage() for record in caplog.records].count(
        "object stranger-1 is of run run_else, which is not in this store: left alone"
    ) == 1


def test_a_deletion_that_was_lost_is_asked_for_again(running: Stage) -> None:
    running.cancel()
    running.look(2)
    job = running.memory.jobs[running.object]
    running.memory.jobs[running.object] = dataclasses.replace(job, deleting=False)
    running.look(2)
    assert running.memory.jobs[running.object].deleting


def test_a_deletion_waits_for_a_cluster_that_is_away(running: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise Unavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(running.memory, "delete", away)
        running.cancel()
        running.look(3)
        assert not running.memory.jobs[running.object].deleting
    running.after(61)
    assert running.memory.jobs[running.object].deleting


def test_leases_of_a_dead_process_are_void_at_the_start(stage: Stage) -> None:
    stage.ask()
    leased = update(Outbox).values(lease="dead", leased_until=stage.clock.now + 1000)
    stage.context.store.write(lambda t: t.session.execute(leased))
    assert stage.look().phase == "queued"
    stage.restart()
    assert stage.look().phase == "pending"


def test_an_outcome_is_stored_only_while_its_lease_stands(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.ask()
    create = stage.memory.create

    def slow(*arguments: Any) -> str:
        uid = create(*arguments)
        stage.context.store.write(lambda t: t.session.execute(update(Outbox).values(lease="another")))
        return uid

    monkeypatch.setattr(stage.memory, "create", slow)
    assert stage.look().phase == "submitting"
    assert stage.attempt.uid is None
    monkeypatch.undo()
    assert stage.after(61).phase == "pending"
    assert len(stage.memory.created) == 1


def test_a_decision_is_void_when_the_run_has_moved_on(running: Stage) -> None:
    with running.context.store.read() as session:
        row, attempt = session.get_one(Run, running.id), session.get_one(Attempt, (running.id, 1))
    running.memory.end(running.object, 0)
    look = Look(row, attempt, running.memory.jobs[running.object], 0, running.clock.now)
    decision = decide(look)
    assert decision is not None
    running.cancel()
    assert not applying.apply(running.context.store, Pace(), look, decision)
    assert running.run.phase == "running"


def test_a_verdict_is_written_once(running: Stage) -> None:
    with running.context.store.read() as session:
        row, attempt = session.get_one(Run, running.id), session.get_one(Attempt, (running.id, 1))
    running.memory.end(running.object, 1)
    look = Look(row, attempt, running.memory.jobs[running.object], 0, running.clock.now)
    decision = decide(look)
    assert decision is not None
    assert decision.verdict is not None
    running.context.store.write(lambda t: t.session.execute(update(Attempt).values(reason="First")))
    assert not applying.apply(running.context.store, Pace(), look, decision)
    assert running.attempt.reason == "First"


@ON_SQLITE
def test_many_runs_are_submitted_in_one_look(stage: Stage) -> None:
    made: list[RunView] = [stage.ask() for _ in range(40)]
    stage.look()
    assert {runs.get(stage.context, run.id).phase for run in made} == {"pending"}
    assert len(stage.memory.created) == 40
