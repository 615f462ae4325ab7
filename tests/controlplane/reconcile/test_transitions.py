"""Every numbered row of docs/lifecycle.md, "Transitions"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from controlplane.clusters.base import Kind, Manifest, NameConflict, Refusal, Rejected, Traits, Unavailable
from controlplane.domain.errors import NotAlive
from controlplane.domain.names import token_hash
from controlplane.domain.phases import LIVE, TERMINAL, TRANSITIONS, Phase
from controlplane.domain.queues import QueueState
from controlplane.reconcile import apply as applying
from controlplane.services import metrics, queues, runs
from controlplane.services.attempts import attempt as get_attempt
from controlplane.services.attempts import authenticate
from controlplane.store.tables import Attempt, Outbox
from tests.controlplane.reconcile.conftest import Stage

DOCUMENT = Path(__file__).parents[3] / "docs" / "lifecycle.md"


def test_the_document_and_the_table_list_the_same_transitions() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*?) \| `(\w+)` \|", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    written = {(int(number), frozenset(re.findall(r"`(\w+)`", sources)), target) for number, sources, target in rows}
    assert written == {(one.number, frozenset(map(str, one.sources)), str(one.target)) for one in TRANSITIONS}
    assert [one.number for one in TRANSITIONS] == list(range(len(TRANSITIONS)))


def test_no_transition_leaves_a_terminal_phase_and_every_phase_is_reached() -> None:
    assert not any(one.sources & TERMINAL for one in TRANSITIONS)
    assert {one.target for one in TRANSITIONS} == set(Phase)
    assert frozenset().union(*(one.sources for one in TRANSITIONS)) == LIVE


def object_of(stage: Stage, run_id: str) -> str:
    return get_attempt(stage.context, run_id).name


def test_0_a_run_is_queued_before_the_cluster_hears_of_it(stage: Stage) -> None:
    run = stage.ask(name="first")
    assert (run.phase, run.desired, run.attempt, run.name) == ("queued", "running", 1, "first")
    assert stage.memory.created == []


def test_1_and_3_a_due_object_is_made_under_its_deterministic_name(stage: Stage) -> None:
    run = stage.ask(name="Übung 7")
    assert stage.look().phase == "pending"
    assert stage.memory.created == [f"ubung-7-{run.id[-8:].lower()}-1"]
    assert stage.attempt.uid == "uid-1"
    assert stage.transitions[:2] == [1, 3]


def test_the_token_of_an_attempt_reaches_its_pods_and_is_stored_as_a_hash_only(stage: Stage) -> None:
    stage.ask()
    stage.look()
    token = stage.memory.secrets[stage.object]["token"]
    with stage.context.store.read() as session:
        assert session.scalars(select(Outbox)).all() == []
        assert session.scalars(select(Attempt.token_hash)).one() == token_hash(token)
    assert authenticate(stage.context, stage.id, token) == 1


def test_2_an_unreachable_cluster_fails_nothing_and_is_asked_again(stage: Stage) -> None:
    stage.ask()
    stage.memory.fail = Unavailable("no route")
    run = stage.look()
    assert (run.phase, run.reason) == ("submitting", "ClusterUnreachable")
    assert stage.after(7 * 86_400).phase == "submitting"
    stage.memory.fail = None
    assert stage.after(61).phase == "pending"
    assert len(stage.memory.created) == 1
    assert 2 in stage.transitions


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [(Rejected([Refusal("spec.x", 1, "2")]), "ManifestRejected"), (NameConflict("taken"), "NameConflict")],
)
def test_4_a_final_refusal_fails_the_run(stage: Stage, refusal: Rejected | NameConflict, reason: str) -> None:
    stage.ask()
    stage.memory.refuse = refusal
    run = stage.look()
    assert (run.phase, run.reason, run.message) == ("failed", reason, str(refusal))
    assert stage.attempt.phase == "failed"
    assert stage.transitions == [1, 4]


@pytest.mark.parametrize(
    ("more", "asked"),
    [
        ({}, 0),
        ({"pod_overrides": {"spec": {"priorityClassName": "x"}}}, 1),
        ({"pod_overrides": {"spec": {"priorityClassName": "x"}}, "kubernetes": {"kind": "Job"}}, 0),
    ],
    ids=["as we make it", "patched", "of a kind whose schema is the pod's"],
)
def test_4_a_patched_pod_is_looked_at_before_an_object_is_made_whose_operator_alone_would_learn_of_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], asked: int
) -> None:
    looked: list[str] = []
    refusal = Rejected([Refusal("spec.pytorchReplicaSpecs.Master.template.spec.x", 1, "2")])

    def look(manifest: dict[str, Any]) -> None:
        looked.append(manifest["metadata"]["name"])
        raise refusal

    kinds: tuple[Kind, ...] = ("PyTorchJob", "Job")
    stage.memory.shown = replace(stage.memory.shown, kinds=kinds, shared_folders=False, audience="teragpt")
    monkeypatch.setattr(stage.memory, "dry_run", look)
    stage.memory.claims["runs"] = frozenset({"ReadWriteMany"})
    stage.ask(checkpoint={"uri": "pvc://runs"}, **more)
    run = stage.look()
    assert len(looked) == asked
    wanted = ("failed", "ManifestRejected", str(refusal)) if asked else ("pending", "Queued", "needs a place")
    assert (run.phase, run.reason, run.message) == wanted
    assert len(stage.memory.created) == 1 - asked


def test_9_and_5_a_waiting_pod_says_why_and_placed_pods_are_starting(stage: Stage) -> None:
    stage.ask()
    assert (stage.look().reason, stage.run.message) == ("Queued", "needs a place")
    stage.memory.pod(stage.object, message="needs 2 CPUs, 1 is free")
    assert (stage.look().phase, stage.run.message) == ("pending", "needs 2 CPUs, 1 is free")
    stage.memory.pod(stage.object, reason="ContainerCreating")
    assert stage.look().phase == "starting"
    stage.memory.pod(stage.object, reason="Queued")
    assert stage.look().phase == "pending"
    assert stage.transitions == [1, 3, 9, 9, 5, 9]


def test_6_a_run_runs_when_all_its_pods_do(stage: Stage) -> None:
    stage.ask(compute={"nodes": 2, "processes_per_node": 1})
    stage.look()
    stage.memory.pod(stage.object, 0, phase="Running", reason=None, started_at=datetime.now(UTC))
    assert stage.look().phase == "pending"
    stage.memory.run(stage.object)
    run = stage.look()
    assert run.phase == "running"
    assert run.started_at is not None
    assert stage.attempt.started_at == run.started_at
    assert stage.transitions[-1] == 6


def test_7_a_run_whose_pods_all_end_with_0_has_succeeded(running: Stage) -> None:
    running.memory.end(running.object, 0)
    run = running.look()
    assert (run.phase, run.reason) == ("succeeded", None)
    assert run.finished_at is not None
    assert running.attempt.phase == "succeeded"
    assert running.transitions[-1] == 7
    running.look()
    assert running.memory.jobs == {}


def test_7_success_waits_for_every_pod(stage: Stage) -> None:
    stage.ask(compute={"nodes": 2, "processes_per_node": 1})
    stage.look()
    stage.memory.run(stage.object)
    stage.memory.end(stage.object, 0, 0)
    assert stage.look().phase == "running"
    stage.memory.end(stage.object, 0, 1)
    assert stage.look().phase == "succeeded"


def test_7_a_run_that_was_never_seen_running_can_have_succeeded(stage: Stage) -> None:
    stage.ask()
    stage.look()
    stage.memory.run(stage.object)
    stage.memory.end(stage.object, 0)
    run = stage.look()
    assert run.phase == "succeeded"
    assert run.started_at is not None


def test_8_a_crash_restarts_the_run_after_its_backoff(running: Stage) -> None:
    running.memory.end(running.object, 1)
    run = running.look()
    assert (run.phase, run.attempt, run.reason) == ("restarting", 2, "Crash")
    assert [one.phase for one in running.attempts] == ["failed", "queued"]
    assert running.look(3).phase == "restarting"
    assert running.after(1.01).phase == "pending"
    assert len(running.memory.created) == 2
    assert running.transitions[-4:] == [8, 1, 3, 9]


def test_8_the_next_attempt_waits_until_every_pod_of_this_one_is_quiet(stage: Stage) -> None:
    stage.ask(compute={"nodes": 2, "processes_per_node": 1})
    stage.look()
    first = stage.object
    stage.memory.run(first)
    stage.look()
    stage.memory.end(first, 1, 1)
    assert stage.look(2).phase == "running"
    assert stage.attempt.reason == "Crash"
    assert stage.memory.jobs[first].deleting
    assert stage.after(3600).phase == "running"
    stage.memory.end(first, 137, 0)
    assert stage.look().phase == "restarting"
    assert stage.attempts[0].exit_code == 1


@pytest.mark.parametrize(("code", "reason"), [(2, "ConfigError"), (3, "Diverged")])
def test_10_bad_config_and_divergence_are_never_tried_again(running: Stage, code: int, reason: str) -> None:
    running.memory.end(running.object, code)
    run = running.look()
    assert (run.phase, run.reason, run.attempt) == ("failed", reason, 1)
    assert running.transitions[-1] == 10


def test_10_the_deadline_ends_a_running_run(stage: Stage) -> None:
    stage.ask(limits={"max_runtime_s": 100})
    stage.look()
    stage.memory.run(stage.object)
    stage.memory.pod(stage.object, started_at=datetime.fromtimestamp(stage.clock.now, UTC))
    stage.look()
    assert stage.after(99).phase == "running"
    stage.after(2)
    stage.look()
    assert stage.memory.jobs[stage.object].deleting
    stage.memory.stop(stage.object)
    run = stage.look(2)
    assert (run.phase, run.reason) == ("failed", "DeadlineExceeded")


def test_10_the_deadline_ends_a_run_that_waits_for_its_next_attempt(stage: Stage) -> None:
    stage.ask(limits={"max_runtime_s": 100})
    stage.look()
    stage.memory.run(stage.object)
    stage.memory.pod(stage.object, started_at=datetime.fromtimestamp(stage.clock.now, UTC))
    stage.look()
    stage.clock.sleep(99.5)
    stage.memory.end(stage.object, 1)
    assert stage.look().phase == "restarting"
    run = stage.after(0.9)
    assert (run.phase, run.reason) == ("failed", "DeadlineExceeded")
    stage.after(3600)
    assert len(stage.memory.created) == 1


def test_10_a_run_that_finds_no_place_in_time_has_failed(stage: Stage) -> None:
    stage.ask(limits={"max_pending_s": 60})
    stage.look()
    assert stage.after(59).phase == "pending"
    stage.after(2)
    stage.look()
    stage.memory.stop(stage.object)
    run = stage.look(2)
    assert (run.phase, run.reason) == ("failed", "PendingTimeout")


def test_11_and_13_a_cancel_ends_the_pods_and_then_the_run(running: Stage) -> None:
    assert running.cancel().desired == "cancelled"
    assert running.look().phase == "cancelling"
    assert running.look(3).phase == "cancelling"
    assert running.memory.jobs[running.object].deleting
    running.memory.stop(running.object)
    run = running.look(2)
    assert (run.phase, run.reason) == ("cancelled", None)
    assert running.attempt.phase == "cancelled"
    assert running.transitions[-2:] == [11, 13]


def test_11_a_cancel_reaches_a_run_whose_cluster_is_away(stage: Stage) -> None:
    stage.ask()
    stage.memory.fail = Unavailable("no route")
    stage.look()
    stage.cancel()
    assert stage.look().phase == "submitting"
    stage.memory.fail = None
    assert stage.look().phase == "cancelling"
    with stage.context.store.read() as session:
        assert [row.op for row in session.scalars(select(Outbox))] == ["delete"]
    assert stage.after(120).phase == "cancelling"
    assert stage.look().phase == "cancelled"
    assert stage.memory.created == []


def test_12_a_cancel_of_a_queued_run_makes_no_object(stage: Stage) -> None:
    stage.ask()
    stage.cancel()
    assert stage.look().phase == "cancelled"
    assert stage.memory.created == []
    assert stage.transitions == [12]


def test_12_a_cancel_of_a_restarting_run_makes_no_further_object(running: Stage) -> None:
    running.memory.end(running.object, 1)
    running.look()
    running.cancel()
    assert running.look().phase == "cancelled"
    running.after(3600)
    assert len(running.memory.created) == 1


def test_a_cancel_that_comes_first_wins_over_success(running: Stage) -> None:
    running.cancel()
    running.memory.end(running.object, 0)
    assert running.look(3).phase == "cancelled"


def test_a_success_that_comes_first_wins_over_a_cancel(running: Stage) -> None:
    running.memory.end(running.object, 0)
    running.look()
    run = running.cancel()
    assert (run.phase, run.desired) == ("succeeded", "running")
    assert running.look(2).phase == "succeeded"


def cancel_during_creation(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    create = stage.memory.create

    def cancelled_meanwhile(manifest: Manifest, secret: Mapping[str, str] | None = None) -> str:
        stage.cancel()
        return create(manifest, secret)

    monkeypatch.setattr(stage.memory, "create", cancelled_meanwhile)


def test_a_cancel_wins_over_a_refusal_that_comes_later(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.ask()
    stage.memory.refuse = NameConflict("taken")
    cancel_during_creation(stage, monkeypatch)
    assert stage.look(4).phase == "cancelled"


def test_a_cancel_during_the_creation_ends_what_was_created(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.ask()
    cancel_during_creation(stage, monkeypatch)
    assert stage.look().phase == "cancelling"
    stage.look()
    stage.memory.stop(stage.object)
    assert stage.look(2).phase == "cancelled"


def test_cancelling_twice_is_cancelling_once(running: Stage) -> None:
    running.cancel()
    running.cancel()
    running.look()
    running.cancel()
    kinds = [
        one.kind
        for one in __import__("controlplane.services.attempts", fromlist=["events"]).events(running.context, running.id)
    ]
    assert kinds.count("cancel") == 1


def test_18_of_several_multi_pod_runs_one_at_a_time_looks_for_its_places(stage: Stage) -> None:
    stage.memory.shown = Traits(gang=False)
    two_pods = {"nodes": 2, "processes_per_node": 1}
    first, second, third = (stage.ask(name=name, compute=two_pods) for name in ("first", "second", "third"))
    small = stage.ask(name="small")
    stage.look(2)
    assert [runs.get(stage.context, run.id).phase for run in (first, second, third, small)] == [
        "pending",
        "queued",
        "queued",
        "pending",
    ]
    waiting = runs.get(stage.context, third.id)
    assert (waiting.reason, waiting.message) == (
        "WaitsForTurn",
        "place 2 in line: all pods of 'first' must find their places first",
    )
    stage.memory.run(object_of(stage, first.id))
    stage.look(2)
    assert runs.get(stage.context, first.id).phase == "running"
    stage.look()
    assert runs.get(stage.context, second.id).phase == "pending"
    assert runs.get(stage.context, third.id).message == (
        "place 1 in line: all pods of 'second' must find their places first"
    )


def test_19_a_run_that_was_to_start_from_one_that_failed_fails(stage: Stage) -> None:
    first = stage.ask(train={"steps": 10})
    second = stage.ask(train={"steps": 20}, after=first.id)
    stage.look()
    stage.memory.end(object_of(stage, first.id), 2)
    stage.look(3)
    ended = runs.get(stage.context, second.id)
    assert (ended.phase, ended.reason) == ("failed", "UpstreamFailed")
    assert stage.transitions == [19]


def test_20_a_restart_that_is_due_waits_for_its_paused_queue(running: Stage) -> None:
    queues.set_state(running.context, "default", QueueState.PAUSED)
    running.memory.end(running.object, 1)
    running.look(2)
    run = running.after(5)
    assert (run.phase, run.reason, running.transitions[-1]) == ("restarting", "QueuePaused", 20)


def test_18_a_run_that_finds_no_places_lets_the_others_go_first(stage: Stage) -> None:
    stage.memory.shown = Traits(gang=False)
    two_pods = {"nodes": 2, "processes_per_node": 1}
    first, second = (stage.ask(name=name, compute=two_pods) for name in ("first", "second"))
    stage.look(2)
    stage.after(299)
    assert runs.get(stage.context, first.id).phase == "pending"
    stage.after(2)
    stage.look()
    stage.memory.stop(object_of(stage, first.id))
    stage.look(2)
    waiting = runs.get(stage.context, first.id)
    assert (waiting.phase, waiting.reason, waiting.restarts) == ("restarting", "Requeued", 0)
    stage.after(2)
    stage.look()
    assert runs.get(stage.context, second.id).phase == "pending"
    assert runs.get(stage.context, first.id).phase == "restarting"
    stage.memory.run(object_of(stage, second.id))
    stage.look(3)
    assert runs.get(stage.context, first.id).phase == "pending"


def test_18_who_is_held_back_by_kueue_holds_up_nobody_and_is_not_put_back(stage: Stage) -> None:
    """Its queue may be the namespace's default, that it does not name."""
    stage.memory.shown = Traits(gang=False, queues=True)
    two_pods = {"nodes": 2, "processes_per_node": 1}
    first, second = (stage.ask(name=name, compute=two_pods) for name in ("first", "second"))
    stage.look(2)
    assert runs.get(stage.context, second.id).phase == "queued"
    for index in (0, 1):
        stage.memory.pod(object_of(stage, first.id), index, reason="WaitingForQuota")
    stage.after(301)
    stage.look(2)
    assert [runs.get(stage.context, run.id).phase for run in (first, second)] == ["pending", "pending"]


def test_a_run_alone_may_wait_for_its_places_as_long_as_it_takes(stage: Stage) -> None:
    stage.memory.shown = Traits(gang=False)
    stage.ask(compute={"nodes": 2, "processes_per_node": 1})
    stage.look(2)
    assert stage.after(86_400).phase == "pending"
    assert stage.attempt.reason is None


def test_14_16_and_17_a_suspended_run_holds_nothing_and_goes_on_when_resumed(running: Stage) -> None:
    running.suspend()
    assert running.look().phase == "suspending"
    running.look()
    assert running.memory.jobs[running.object].deleting
    assert running.look().phase == "suspending"
    point = {"seq": 1, "step": 40, "time": 1.0, "checkpoint": 40}
    metrics.add_metrics(running.context, running.id, 1, [point])
    running.memory.stop(running.object)
    run = running.look(2)
    assert (run.phase, run.restarts, run.checkpoint_step, running.memory.jobs) == ("suspended", 0, 40, {})
    assert running.after(86_400).phase == "suspended"
    running.resume()
    assert running.look(2).phase == "pending"
    assert (running.attempt.attempt, running.attempt.resumed_from) == (2, 40)
    assert [one.phase for one in running.attempts] == ["suspended", "pending"]
    assert running.transitions[-6:] == [14, 16, 17, 1, 3, 9]


def test_15_a_suspended_run_without_an_object_makes_none_until_it_is_resumed(stage: Stage) -> None:
    stage.ask()
    stage.suspend()
    assert stage.look(3).phase == "suspended"
    assert stage.memory.created == []
    stage.resume()
    assert stage.look(2).phase == "pending"
    assert stage.transitions == [15, 17, 1, 3, 9]


def test_16_a_resume_waits_for_the_pods_that_are_being_suspended(running: Stage) -> None:
    running.suspend()
    running.look(2)
    running.resume()
    assert running.look(2).phase == "suspending"
    running.memory.stop(running.object)
    assert running.look(3).phase == "pending"
    assert running.attempt.attempt == 2


def test_7_a_run_that_came_to_its_end_while_it_was_suspended_has_succeeded(running: Stage) -> None:
    running.suspend()
    running.look(2)
    running.memory.end(running.object, 0)
    assert running.look().phase == "succeeded"


def test_11_and_12_a_suspended_run_can_be_cancelled(running: Stage, stage: Stage) -> None:
    running.suspend()
    running.look()
    running.cancel()
    assert running.look().phase == "cancelling"
    running.memory.stop(running.object)
    assert running.look(3).phase == "cancelled"
    stage.ask()
    stage.suspend()
    stage.look()
    stage.cancel()
    assert stage.look().phase == "cancelled"
    with pytest.raises(NotAlive, match="is cancelled and cannot be resumed"):
        stage.resume()


def test_a_run_that_is_being_cancelled_cannot_be_suspended(running: Stage) -> None:
    running.cancel()
    with pytest.raises(NotAlive, match="is being cancelled and cannot be suspended"):
        running.suspend()


def test_the_time_that_a_run_is_suspended_is_not_its_runtime(stage: Stage) -> None:
    stage.ask(limits={"max_runtime_s": 100})
    stage.look()
    started = datetime.fromtimestamp(stage.clock.now, UTC)
    stage.memory.pod(stage.object, phase="Running", reason=None, message=None, started_at=started)
    stage.look()
    stage.suspend()
    stage.look(2)
    stage.memory.stop(stage.object)
    assert stage.look(2).phase == "suspended"
    stage.after(5_000)
    stage.resume()
    stage.look(2)
    stage.memory.run(stage.object)
    assert stage.after(90).phase == "running"
    stage.after(20)
    stage.look()
    stage.memory.stop(stage.object)
    run = stage.look(2)
    assert (run.phase, run.reason) == ("failed", "DeadlineExceeded")


def test_what_was_never_acknowledged_is_read_before_the_run_ends(running: Stage) -> None:
    folder = Path(running.run.folder)
    folder.mkdir(parents=True)
    lines = [f'{{"seq": {n}, "attempt": 1, "step": {n}, "time": 1.0, "loss": {9 - n}.0}}' for n in range(1, 5)]
    (folder / "metrics.jsonl").write_text(
        "\n".join([*lines, '{"seq": 1, "attempt": 7, "step": 1, "time": 1}', '{"torn'])
    )
    metrics.add_metrics(running.context, running.id, 1, [{"seq": 1, "step": 1, "time": 1.0, "loss": 8.0}])
    running.memory.end(running.object, 0)
    assert running.look().phase == "succeeded"
    assert [point["loss"] for point in metrics.curve(running.context, running.id)] == [8.0, 7.0, 6.0, 5.0]
    progress = running.run.progress
    assert progress is not None
    assert (progress["step"], progress["loss"]) == (4, 5.0)


def test_a_long_record_is_read_whole(running: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applying, "BATCH", 10)
    folder = Path(running.run.folder)
    folder.mkdir(parents=True)
    lines = [f'{{"seq": {n}, "attempt": 1, "step": {n}, "time": 1.0, "loss": 1.0}}\n' for n in range(1, 36)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    running.memory.end(running.object, 0)
    running.look()
    assert len(metrics.curve(running.context, running.id)) == 35


def test_a_finished_run_frees_its_name(running: Stage) -> None:
    name = running.run.name
    running.memory.end(running.object, 0)
    running.look()
    assert running.ask(name=name).id != running.attempts[0].name
    assert runs.get(running.context, name).phase == "queued"


def test_an_ended_run_is_found_by_its_name_until_another_takes_it(running: Stage) -> None:
    run = running.run
    running.memory.end(running.object, 0)
    running.look()
    assert runs.get(running.context, run.name).id == run.id


@pytest.mark.parametrize("state", [QueueState.PAUSED, QueueState.DRAINING])
def test_21_a_closed_queue_takes_back_what_is_pending_and_begins_it_when_it_is_opened(
    stage: Stage, state: QueueState
) -> None:
    stage.ask()
    assert stage.look().phase == "pending"
    before, reason = stage.object, {"paused": "QueuePaused", "draining": "QueueDraining"}[state]
    queues.set_state(stage.context, "default", state, note="new disks")
    stage.reconciler.step(whole=False)
    stage.look()
    assert stage.memory.jobs[before].deleting
    stage.memory.stop(before)
    run = stage.look(2)
    assert (run.phase, run.reason, run.message) == ("queued", reason, f"queue 'default' is {state}: new disks")
    assert (run.attempt, run.restarts, stage.attempts[0].charged, stage.transitions[-1]) == (2, 0, False, 21)
    (shown,) = queues.queues(stage.context)
    assert (shown.waiting, shown.under_way, shown.drained) == (1, 0, True)
    queues.set_state(stage.context, "default", QueueState.OPEN)
    stage.look()
    stage.memory.run(stage.object)
    assert stage.look().phase == "running"


def test_every_transition_of_the_table_has_a_test() -> None:
    written = Path(__file__).read_text("utf-8")
    numbers = {
        int(n) for names in re.findall(r"def test_((?:\d+_(?:and_)?)+)", written) for n in re.findall(r"\d+", names)
    }
    assert numbers == {one.number for one in TRANSITIONS}


def test_a_pod_that_goes_with_its_object_has_ended(running: Stage) -> None:
    running.cancel()
    running.look()
    running.memory.vanish(running.object)
    run = running.look(3)
    (pod,) = running.attempt.pods
    assert (run.phase, pod.phase, pod.reason) == ("cancelled", "Failed", "Deleted")
    assert pod.finished_at is not None
