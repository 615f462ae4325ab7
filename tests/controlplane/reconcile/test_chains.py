"""A run that comes after another one begins once that has succeeded, and fails where it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from controlplane.services import attempts, runs
from controlplane.services.attempts import events
from controlplane.services.views import RunView
from tests.controlplane.reconcile.conftest import Stage


@pytest.fixture
def chain(stage: Stage) -> list[str]:
    """The ids of three runs, each after the one before; the first one runs."""
    made: list[str] = []
    for steps in (10, 20, 30):
        made.append(stage.ask(train={"steps": steps}, **({"after": made[-1]} if made else {})).id)
    stage.id = made[0]
    stage.look()
    stage.memory.run(stage.object)
    stage.look()
    return made


def of(stage: Stage, run_id: str) -> RunView:
    return runs.get(stage.context, run_id)


def publish(folder: str, step: int) -> None:
    """What the trainer leaves with a checkpoint."""
    place = Path(folder) / "checkpoints" / f"step-{step:08d}-attempt-1"
    place.mkdir(parents=True)
    (place / "meta.json").write_text(json.dumps({"step": step, "attempt": 1}), "utf-8")


def test_each_begins_when_the_one_before_has_succeeded(stage: Stage, chain: list[str]) -> None:
    first, second, third = chain
    stage.look(2)
    assert [of(stage, each).phase for each in chain] == ["running", "queued", "queued"]
    assert of(stage, second).message == f"waits for run {of(stage, first).name!r} ({first}) to succeed"
    publish(of(stage, first).folder, 10)
    stage.memory.end(stage.object, 0)
    stage.look(2)
    assert [of(stage, each).phase for each in chain] == ["succeeded", "pending", "queued"]
    assert attempts.attempt(stage.context, second).resumed_from == 10
    assert [one for one in events(stage.context, third) if one.kind == "phase"] == []


def test_after_a_restart_it_is_still_waited_for(stage: Stage, chain: list[str]) -> None:
    stage.memory.end(stage.object, 1)
    stage.look(2)
    assert [of(stage, each).phase for each in chain] == ["restarting", "queued", "queued"]


def test_where_one_fails_all_that_wait_for_it_fail(stage: Stage, chain: list[str]) -> None:
    first, second, third = chain
    stage.memory.end(stage.object, 2)
    stage.look(4)
    told = [(of(stage, each).phase, of(stage, each).reason) for each in (second, third)]
    assert told == [("failed", "UpstreamFailed")] * 2
    assert of(stage, second).message == (
        f"run {of(stage, first).name!r} ({first}), from whose checkpoint it was to start, has failed"
    )
    assert len(stage.memory.made) == 1
    assert attempts.attempt(stage.context, third).finished_at is not None


def test_where_one_is_cancelled_those_that_wait_for_it_say_so(stage: Stage, chain: list[str]) -> None:
    _, second, third = chain
    runs.cancel_run(stage.context, second)
    stage.look(3)
    assert [of(stage, each).phase for each in chain] == ["running", "cancelled", "failed"]
    assert of(stage, third).reason == "UpstreamCancelled"


def test_one_that_is_suspended_while_it_waits_waits_on_when_it_is_resumed(stage: Stage, chain: list[str]) -> None:
    first, second, _ = chain
    runs.suspend_run(stage.context, second)
    stage.look()
    assert of(stage, second).phase == "suspended"
    runs.resume_run(stage.context, second)
    stage.look(2)
    assert (of(stage, second).phase, of(stage, second).reason) == ("queued", "WaitsForRun")
    stage.memory.end(stage.object, 0)
    stage.look(3)
    assert (of(stage, first).phase, of(stage, second).phase) == ("succeeded", "pending")
