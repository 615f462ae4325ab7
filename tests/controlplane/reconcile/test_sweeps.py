"""Runs of a sweep are begun up to its parallelism, whatever ends, fails, is suspended or is killed."""

from __future__ import annotations

from collections import Counter

import pytest

from controlplane.domain.sweeps import SweepSpec
from controlplane.services import runs, sweeps
from controlplane.services.attempts import events
from controlplane.services.context import Context
from tests.controlplane.memory_cluster import Clock, MemoryCluster
from tests.controlplane.postgres import ON_SQLITE
from tests.controlplane.reconcile.conftest import Stage
from tests.controlplane.reconcile.test_crashes import Assassin, outlive

POINTS, AT_ONCE = 5, 2
UNDER_WAY = {"submitting", "pending", "starting", "running", "restarting", "cancelling", "suspending"}


def ask(context: Context, parallelism: int = AT_ONCE, name: str = "s") -> str:
    body = SweepSpec(name=name, spec={"size": "tiny"}, grid={"/train/seed": [*range(POINTS)]}, parallelism=parallelism)
    return sweeps.create_sweep(context, body)[0].id


def phases(context: Context) -> list[str]:
    return [one.phase for one in sweeps.get(context, "s").items]


def test_the_first_points_go_first_and_the_next_when_one_has_ended(stage: Stage) -> None:
    ask(stage.context)
    stage.reconciler.step()
    assert phases(stage.context) == ["pending", "pending", "queued", "queued", "queued"]
    waiting = sweeps.get(stage.context, "s").items[4]
    assert (waiting.reason, waiting.message) == ("WaitsForSweep", "sweep 's' lets 2 runs go at a time")
    stage.memory.end(str(runs.get(stage.context, "s-1").kubernetes["name"]), 2)
    for _ in range(2):
        stage.reconciler.step()
    assert phases(stage.context) == ["pending", "failed", "pending", "queued", "queued"]
    told = [one for one in events(stage.context, runs.get(stage.context, "s-4").id) if one.kind == "phase"]
    assert told == []  # it waits for the same thing all the time


def test_other_runs_do_not_wait_for_a_sweep(stage: Stage) -> None:
    ask(stage.context)
    ask(stage.context, name="other")
    alone = stage.ask(name="alone")
    stage.reconciler.step()
    assert runs.get(stage.context, alone.id).phase == "pending"
    assert sweeps.get(stage.context, "other").phases == {"pending": 2, "queued": 3}


def test_a_suspended_run_leaves_its_place_and_waits_for_one_when_it_is_resumed(stage: Stage) -> None:
    ask(stage.context)
    stage.reconciler.step()
    runs.suspend_run(stage.context, "s-0")
    stage.reconciler.step()
    stage.memory.stop(str(runs.get(stage.context, "s-0").kubernetes["name"]))
    for _ in range(3):
        stage.reconciler.step()
    assert phases(stage.context) == ["suspended", "pending", "pending", "queued", "queued"]
    runs.resume_run(stage.context, "s-0")
    for _ in range(2):
        stage.reconciler.step()
    assert phases(stage.context) == ["queued", "pending", "pending", "queued", "queued"]
    assert runs.get(stage.context, "s-0").reason == "WaitsForSweep"


def test_a_restart_keeps_its_place(stage: Stage) -> None:
    ask(stage.context, parallelism=1)
    stage.reconciler.step()
    stage.memory.end(str(runs.get(stage.context, "s-0").kubernetes["name"]), 1)
    for _ in range(2):
        stage.reconciler.step()
    assert phases(stage.context)[:2] == ["restarting", "queued"]
    stage.clock.sleep(5)
    stage.reconciler.step()
    assert phases(stage.context)[:2] == ["pending", "queued"]


def test_a_cancelled_sweep_ends_and_begins_nothing_more(stage: Stage) -> None:
    ask(stage.context)
    stage.reconciler.step()
    sweeps.cancel_sweep(stage.context, "s")
    stage.reconciler.step()
    for name in list(stage.memory.jobs):
        stage.memory.stop(name)
    for _ in range(2):
        stage.reconciler.step()
    assert phases(stage.context) == ["cancelled"] * POINTS
    assert len(stage.memory.created) == AT_ONCE
    assert sweeps.get(stage.context, "s").ended


@ON_SQLITE
@pytest.mark.unmeasured
@pytest.mark.parametrize("before", [True, False])
def test_killed_at_any_instant_a_sweep_goes_on_and_never_beyond_its_parallelism(
    monkeypatch: pytest.MonkeyPatch, context: Context, memory: MemoryCluster, clock: Clock, before: bool
) -> None:
    stage = Stage(context, memory, clock)
    assassin = Assassin(monkeypatch, context.store, memory)
    ask(context)
    outlive(
        stage,
        assassin,
        ended=lambda: sweeps.get(context, "s").ended,
        holds=lambda: sum(phase in UNDER_WAY for phase in phases(context)) <= AT_ONCE,
        before=before,
    )
    assert phases(context) == ["succeeded"] * POINTS
    assert set(Counter(memory.made).values()) == {1}
    assert len(memory.made) == POINTS
