"""docs/lifecycle.md, "Restarts": what is charged, what is free, how long it waits, where it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from controlplane.domain.errors import StillRunning
from controlplane.reconcile.pace import Pace
from controlplane.services import runs
from tests.controlplane.postgres import ON_SQLITE
from tests.controlplane.reconcile.conftest import Stage


def fail(stage: Stage, code: int | None = 1) -> str:
    """Run the present attempt and let it end; returns the run's phase after that."""
    stage.after(301)
    if stage.object not in stage.memory.jobs:
        return stage.run.phase
    stage.memory.run(stage.object)
    stage.look()
    stage.memory.end(stage.object, code, reason="Lost" if code is None else "Error")
    return stage.look().phase


def publish(folder: str, step: int, attempt: int, resumed_from: int = 0) -> None:
    """A complete checkpoint and its attempt's owner file, as the trainer leaves them."""
    checkpoints = Path(folder) / "checkpoints"
    published = checkpoints / f"step-{step:08d}-attempt-{attempt}"
    published.mkdir(parents=True)
    (published / "meta.json").write_text(json.dumps({"step": step, "attempt": attempt}))
    owner = {"attempt": attempt, "resumed_from": resumed_from}
    (checkpoints / f"owner-{attempt}.json").write_text(json.dumps(owner))


def test_a_run_fails_when_its_restarts_are_used_up(stage: Stage) -> None:
    stage.ask(limits={"max_restarts": 2})
    assert [fail(stage) for _ in range(3)] == ["restarting", "restarting", "failed"]
    assert stage.run.reason == "Crash"
    assert "after 2 of 2 restarts" in (stage.run.message or "")
    assert [one.charged for one in stage.attempts] == [True, True, True]


def test_without_restarts_the_first_failure_is_the_last(stage: Stage) -> None:
    stage.ask(limits={"max_restarts": 0})
    assert fail(stage) == "failed"
    assert len(stage.attempts) == 1


@ON_SQLITE
@pytest.mark.unmeasured
@pytest.mark.parametrize("code", [143, None])
def test_interruptions_are_not_charged_but_without_progress_they_end(stage: Stage, code: int | None) -> None:
    stage.ask(limits={"max_restarts": 0})
    outcomes = [fail(stage, code) for _ in range(21)]
    assert outcomes == ["restarting"] * 20 + ["failed"]
    assert stage.run.reason == "NoProgress"
    assert stage.run.restarts == 0


@ON_SQLITE
@pytest.mark.unmeasured
def test_a_new_checkpoint_starts_the_count_of_interruptions_anew(stage: Stage) -> None:
    run = stage.ask()
    for _ in range(18):
        fail(stage, 143)
    publish(run.folder, 50, 19)
    assert [fail(stage, 143) for _ in range(20)] == ["restarting"] * 20
    assert stage.run.checkpoint_step == 50


def test_a_lost_object_is_believed_after_two_looks_and_is_not_charged(running: Stage) -> None:
    running.memory.vanish(running.object)
    assert running.look().phase == "running"
    run = running.look()
    assert (run.phase, run.reason, run.restarts) == ("restarting", "ObjectLost", 0)


def test_an_object_that_someone_deletes_restarts_uncharged(running: Stage) -> None:
    running.memory.delete(running.object)
    running.look()
    running.memory.stop(running.object)
    assert running.look(2).phase == "restarting"
    assert running.attempts[0].reason == "ObjectLost"


def test_pods_that_a_deleted_object_left_have_ended_before_the_next_attempt_begins(running: Stage) -> None:
    first = running.object
    running.memory.orphan(first)
    assert running.look().phase == "running"
    assert running.attempt.reason == "ObjectLost"
    assert running.after(300).attempt == 1, "its pod works on"
    assert running.memory.jobs[first].deleting
    running.memory.stop(first)
    assert running.look(2).phase == "restarting"
    assert running.after(300).phase == "pending"
    assert [*running.memory.jobs] == [running.object] != [first]


def test_a_cancel_ends_pods_that_a_deleted_object_left(running: Stage) -> None:
    first = running.object
    running.memory.orphan(first)
    running.cancel()
    assert running.look(2).phase == "cancelling"
    assert running.memory.jobs[first].deleting
    running.memory.stop(first)
    assert running.look(2).phase == "cancelled"


def test_pods_that_an_object_of_an_ended_attempt_left_are_swept(running: Stage) -> None:
    first = running.object
    left = running.memory.jobs[first]
    running.cancel()
    running.look(2)
    running.memory.stop(first)
    assert running.look(2).phase == "cancelled"
    running.memory.jobs[first] = left
    running.memory.orphan(first)
    running.look()
    assert running.memory.jobs[first].deleting


def test_the_backoff_doubles_up_to_its_bound() -> None:
    waits = [Pace().restart_backoff(restarts) for restarts in (1, 2, 3, 9, 10, 1000)]
    assert waits == [1, 2, 4, 256, 300, 300]
    assert 10 <= Pace().submit_backoff(1000) <= 20  # after an outage all is under way again within 30 s


def test_a_clock_that_is_set_back_holds_nothing_up(running: Stage) -> None:
    running.memory.end(running.object, 1)
    assert running.look().phase == "restarting"
    assert running.after(-7200).phase == "pending"


def test_the_backoff_starts_anew_after_a_checkpoint(stage: Stage) -> None:
    run = stage.ask()
    fail(stage)
    fail(stage)
    assert "follows in 2 s from the start" in (stage.run.message or "")
    publish(run.folder, 25, 3)
    fail(stage)
    assert "attempt 4 follows in 1 s from step 25" in (stage.run.message or "")
    assert stage.attempt.resumed_from == 25


def test_what_an_attempt_published_beyond_its_successors_start_does_not_count(stage: Stage) -> None:
    run = stage.ask()
    publish(run.folder, 20, 1)
    publish(run.folder, 30, 2, resumed_from=20)
    publish(run.folder, 40, 1)
    fail(stage)
    assert stage.attempt.resumed_from == 30


def test_a_retry_is_a_new_run_from_the_last_checkpoint(running: Stage) -> None:
    old = running.run
    publish(old.folder, 75, 1)
    with pytest.raises(StillRunning, match="is running"):
        runs.retry_run(running.context, old.id)
    running.memory.end(running.object, 2)
    running.look()
    new, replayed = runs.retry_run(running.context, old.id, idempotency_key="again")
    assert (new.retry_of, new.phase, new.attempt, replayed) == (old.id, "queued", 1, False)
    assert new.resolved["config"]["start_from"] == old.folder
    assert new.folder != old.folder
    assert runs.retry_run(running.context, old.id, idempotency_key="again")[1]
    running.id = new.id
    assert running.attempt.resumed_from == 75


def test_a_retry_of_a_run_without_a_checkpoint_starts_afresh(running: Stage) -> None:
    running.memory.end(running.object, 2)
    running.look()
    new, _ = runs.retry_run(running.context, running.id)
    assert new.resolved["config"]["start_from"] == ""


def test_a_retry_of_a_retry_that_made_no_checkpoint_starts_where_that_one_did(running: Stage) -> None:
    first = running.run
    publish(first.folder, 75, 1)
    running.memory.end(running.object, 2)
    running.look()
    running.id = runs.retry_run(running.context, first.id)[0].id
    fail(running, 2)
    third, _ = runs.retry_run(running.context, running.id)
    assert third.resolved["config"]["start_from"] == first.folder


def test_a_folder_that_had_attempts_goes_on_from_their_numbers(stage: Stage, tmp_path: Path) -> None:
    folder = str(tmp_path / "mine")
    publish(folder, 10, 4)
    run = stage.ask(checkpoint={"uri": folder})
    assert run.attempt == 5
    assert stage.attempt.resumed_from == 10
