from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from controlplane.domain.changes import RunChanges
from controlplane.domain.retention import DAY_S, Retention
from controlplane.services import changes, purges, retention, runs, upkeep
from controlplane.services.attempts import events
from controlplane.services.context import Context
from tests.controlplane.memory_cluster import Clock, MemoryCluster
from tests.controlplane.reconcile.conftest import Stage


@pytest.fixture
def stage(context: Context, memory: MemoryCluster, clock: Clock) -> Stage:
    kept = dataclasses.replace(context, retention=Retention(delete_after_days=10, purge_after_days=5))
    return Stage(kept, memory, clock)


def ended(stage: Stage, name: str) -> str:
    run = stage.ask(name=name)
    Path(run.folder).mkdir(parents=True)
    stage.cancel()
    stage.look(2)
    assert stage.run.phase == "cancelled"
    return run.id


def test_what_ended_long_ago_is_deleted_and_then_purged_and_is_shown_before(stage: Stage) -> None:
    context, old = stage.context, ended(stage, "old")
    stage.clock.sleep(9 * DAY_S)
    young, live = ended(stage, "young"), stage.ask(name="live").id
    retention.enforce(context)
    assert runs.get(context, old).phase == "cancelled"  # not yet
    stage.clock.sleep(2 * DAY_S)
    told = upkeep.state(context).retention
    assert (told.due_for_deletion, told.due_for_purge) == ([old], [])
    retention.enforce(context)
    assert purges.remains(context, old).name == "old"
    stage.clock.sleep(6 * DAY_S)
    assert retention.due(context).purges == [old]
    folder = Path(purges.remains(context, old).folder)
    assert folder.is_dir()
    retention.enforce(context)
    assert not folder.exists()
    assert [runs.get(context, one).id for one in (young, live)] == [young, live]
    retention.enforce(context)  # nothing is due twice
    assert retention.due(context) == retention.Due([], [])


def test_what_is_pinned_or_was_restored_stays(stage: Stage) -> None:
    context, pinned, restored = stage.context, ended(stage, "pinned"), ended(stage, "restored")
    changes.change_run(context, pinned, RunChanges(pinned=True))
    stage.clock.sleep(11 * DAY_S)
    retention.enforce(context)
    changes.restore_run(context, restored)
    actors = [one.data["actor"] for one in events(context, restored) if one.kind in {"delete", "restore"}]
    assert actors == ["retention", "local"]
    stage.clock.sleep(100 * DAY_S)
    retention.enforce(context)
    assert {runs.get(context, one).name for one in (pinned, restored)} == {"pinned", "restored"}


def test_what_a_live_run_begins_from_is_purged_after_that(stage: Stage) -> None:
    context, first = stage.context, ended(stage, "first")
    checkpoint = Path(runs.get(context, first).folder) / "checkpoints" / "step-00000005-attempt-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "meta.json").write_text("{}")
    waits = runs.retry_run(context, first)[0].id  # it goes on from there
    changes.delete_run(context, first)
    stage.clock.sleep(6 * DAY_S)
    retention.enforce(context)
    assert purges.remains(context, first).name == "first"
    stage.id = waits
    stage.cancel()
    stage.look(2)
    retention.enforce(context)
    assert retention.due(context).purges == []


def test_nothing_goes_where_the_installation_says_nothing(context: Context, stage: Stage) -> None:
    ended(stage, "old")
    stage.clock.sleep(10_000 * DAY_S)
    retention.enforce(context)
    assert retention.due(context) == retention.Due([], [])
    assert runs.get(context, "old").phase == "cancelled"
