"""A closed queue begins nobody, and says so; what runs is left alone."""

from __future__ import annotations

from itertools import groupby

import pytest

from controlplane.domain.errors import NotFound
from controlplane.domain.queues import QueueState
from controlplane.services import queues, runs
from controlplane.services.context import Context
from controlplane.services.explanations import explain
from controlplane.services.queues import QueueView
from tests.controlplane.memory_cluster import Clock, MemoryCluster
from tests.controlplane.postgres import ON_SQLITE
from tests.controlplane.reconcile.conftest import Stage
from tests.controlplane.reconcile.test_crashes import Assassin


def shut(stage: Stage, state: QueueState = QueueState.PAUSED, note: str | None = None) -> QueueView:
    return queues.set_state(stage.context, "default", state, note=note, actor="ann")


def test_a_paused_queue_begins_nobody_until_it_is_resumed(stage: Stage) -> None:
    shut(stage, note="new disks")
    stage.ask()
    run = stage.look(2)
    assert (run.phase, run.reason, run.message) == ("queued", "QueuePaused", "queue 'default' is paused: new disks")
    assert "teragpt queue resume" in explain(stage.context, run.id).text
    assert stage.transitions == [18]  # told once
    shut(stage, note="until 18:00")
    assert stage.look().message == "queue 'default' is paused: until 18:00"
    shut(stage, QueueState.OPEN)
    assert (stage.look().phase, stage.run.reason) == ("pending", "Queued")


def test_what_runs_goes_on_and_a_restart_waits(running: Stage) -> None:
    shut(running)
    assert running.look(2).phase == "running"
    running.memory.end(running.object, 1)
    running.look(2)
    assert running.run.reason == "Crash"  # its backoff is not over
    run = running.after(5)
    assert (run.phase, run.reason, running.transitions[-1]) == ("restarting", "QueuePaused", 20)
    shut(running, QueueState.OPEN)
    assert running.look().phase == "pending"


def test_a_draining_queue_lets_those_that_have_begun_come_to_their_end(running: Stage) -> None:
    drained = shut(running, QueueState.DRAINING)
    assert (drained.waiting, drained.under_way, drained.drained) == (0, 1, False)
    other = running.context
    first = running.id
    second = running.ask(name="second")
    running.look(2)
    assert runs.get(other, second.id).reason == "QueueDraining"
    running.id = first
    running.memory.end(running.object, 1)
    running.look(2)
    assert running.after(5).phase == "pending"  # its restart goes on
    running.memory.end(running.object, 0)
    running.look(2)
    (shown,) = queues.queues(other)
    assert (shown.waiting, shown.under_way, shown.drained, shown.changed_by) == (1, 0, True, "ann")


def test_a_restart_that_is_pending_is_taken_back_by_a_pause_and_left_alone_by_a_drain(running: Stage) -> None:
    running.memory.end(running.object, 1)
    running.look(2)
    assert running.after(5).phase == "pending"
    shut(running, QueueState.DRAINING)
    assert running.look(2).phase == "pending"
    shut(running)
    running.look()
    running.memory.stop(running.object)
    assert (running.look(2).phase, running.run.reason, running.run.attempt) == ("queued", "QueuePaused", 3)


def test_a_run_of_a_paused_queue_can_be_cancelled_and_suspended(stage: Stage) -> None:
    shut(stage)
    stage.ask()
    stage.look()
    stage.suspend()
    assert stage.look().phase == "suspended"
    stage.resume()
    stage.look()
    assert (stage.look().phase, stage.run.reason) == ("queued", "QueuePaused")
    stage.cancel()
    assert stage.look().phase == "cancelled"


def test_a_queue_that_nobody_has_named_is_not_found(stage: Stage) -> None:
    with pytest.raises(NotFound):
        queues.set_state(stage.context, "defualt", QueueState.PAUSED)
    assert [(one.name, one.state, one.drained) for one in queues.queues(stage.context)] == [("default", "open", False)]


@ON_SQLITE
@pytest.mark.unmeasured
@pytest.mark.parametrize("before", [True, False])
def test_killed_at_any_instant_a_chain_begins_in_order_and_never_in_a_closed_queue(
    monkeypatch: pytest.MonkeyPatch, context: Context, memory: MemoryCluster, clock: Clock, before: bool
) -> None:
    stage = Stage(context, memory, clock)
    assassin = Assassin(monkeypatch, context.store, memory)
    chain = [stage.ask(name="first", train={"steps": 10}).id]
    chain.append(stage.ask(name="second", train={"steps": 20}, after="first").id)
    looks = 0
    while runs.get(context, chain[-1]).phase != "succeeded":
        closed = looks % 8 < 4
        shut(stage, QueueState.PAUSED if closed else QueueState.OPEN)
        known = len(memory.made)
        assassin.at, assassin.before, assassin.count = 1 + looks % 7, before, 0
        assassin.look(stage)
        assert not closed or len(memory.made) == known or looks % 8 == 0  # what had been begun while it was open
        phases = [runs.get(context, run_id).phase for run_id in chain]
        assert phases[1] == "queued" or phases[0] == "succeeded"
        if looks % 5 == 4 and memory.jobs:
            memory.run(min(memory.jobs))
            memory.end(min(memory.jobs), 0)
        looks += 1
        assert looks < 200
        clock.sleep(61)
    assert len({*memory.made}) == len(memory.made)
    assert [run_id for run_id, _ in groupby(run_id for run_id, _ in memory.made)] == chain  # some were taken back
    assert looks > 10
