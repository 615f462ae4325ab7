"""docs/lifecycle.md, "Verdicts": a hang is silence on both ways."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from controlplane.clusters.base import Stacks
from controlplane.services import metrics
from controlplane.services.attempts import events
from controlplane.services.stacks import stacks
from tests.controlplane.reconcile.conftest import Stage


def report(stage: Stage, step: int, **values: float) -> None:
    point = {"seq": step, "step": step, "time": stage.clock.now, "loss": 3.0, **values}
    metrics.add_metrics(stage.context, stage.id, stage.attempt.attempt, [point])


def write(stage: Stage, text: bytes) -> None:
    key = f"{stage.object}/{stage.attempt.pods[0].name}"
    stage.memory.written[key] = stage.memory.written.get(key, b"") + text


@pytest.fixture
def reporting(running: Stage) -> Stage:
    """A run that reports its first step a moment after its pods ran."""
    running.clock.now = max(running.clock.now, 2_000_000_000.0)
    report(running, 1)
    running.look()
    return running


def test_an_attempt_that_neither_steps_nor_writes_is_ended_and_charged(reporting: Stage) -> None:
    write(reporting, b"step 1\n")
    assert reporting.after(590).phase == "running"
    assert reporting.after(590).phase == "running"  # it wrote a line before the last look
    reporting.after(20)
    assert reporting.memory.jobs[reporting.object].deleting or reporting.attempt.reason == "HangDetected"
    reporting.look()
    reporting.memory.stop(reporting.object)
    run = reporting.look(2)
    assert (run.phase, run.reason, run.restarts) == ("restarting", "HangDetected", 1)
    assert "no step and no line of output for" in (run.message or "")


def test_one_that_writes_lives_though_no_step_arrives(reporting: Stage) -> None:
    for _ in range(10):
        write(reporting, b"still loading\n")
        assert reporting.after(400).phase == "running"
    assert reporting.attempt.reason is None


def test_one_that_steps_lives_though_it_writes_nothing(reporting: Stage) -> None:
    for step in range(2, 12):
        reporting.clock.sleep(500)
        report(reporting, step)
        assert reporting.look().phase == "running"
    assert reporting.attempt.reason is None


def test_one_that_never_reported_is_not_judged_by_silence(running: Stage) -> None:
    running.clock.now = max(running.clock.now, 2_000_000_000.0)
    assert running.after(86_400).phase == "running"
    assert running.attempt.reason is None


def test_slow_steps_are_waited_for(reporting: Stage) -> None:
    report(reporting, 2, eta_s=60.0 * (reporting.run.resolved["steps"] - 2))
    assert reporting.after(5_900).phase == "running"
    assert reporting.attempt.reason is None
    reporting.after(200)
    assert reporting.attempt.reason == "HangDetected"


def test_the_users_own_limit_counts(stage: Stage) -> None:
    stage.ask(limits={"max_silence_s": 30})
    stage.look()
    stage.memory.run(stage.object)
    stage.clock.now = max(stage.clock.now, 2_000_000_000.0)
    stage.look()
    report(stage, 1)
    assert stage.after(25).phase == "running"
    stage.after(10)
    assert stage.attempt.reason == "HangDetected"


def hang(stage: Stage) -> str:
    """Let it hang; the message of its verdict."""
    stage.after(700)
    stage.after(1)
    assert stage.attempt.reason == "HangDetected"
    return stage.attempt.message or ""


def test_where_its_processes_stood_is_kept_before_it_is_ended(reporting: Stage) -> None:
    reporting.memory.seen = Stacks("== rank 0\n    all_reduce\n", 2)
    file = Path(reporting.run.folder) / "faults" / "attempt-1-stacks.txt"
    assert hang(reporting).endswith(f"; the stacks of 2 processes are in {file}")
    assert file.read_text() == "== rank 0\n    all_reduce\n"
    assert [(one.file, one.text) for one in stacks(reporting.context, reporting.id).items] == [
        ("attempt-1-stacks.txt", "== rank 0\n    all_reduce\n")
    ]


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (Stacks(problem="py-spy is not installed"), "no stacks were kept: py-spy is not installed"),
        (Stacks("== rank 0\n", 1, "rank 1: denied"), "attempt-1-stacks.txt, but not all: rank 1: denied"),
    ],
)
def test_what_could_not_be_seen_is_said(reporting: Stage, seen: Stacks, told: str) -> None:
    reporting.memory.seen = seen
    assert hang(reporting).endswith(told)


def test_a_folder_that_takes_no_stacks_holds_up_no_verdict(reporting: Stage) -> None:
    reporting.memory.seen = Stacks("== rank 0\n", 1)
    folder = Path(reporting.run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "faults").write_text("in the way")
    assert re.search(r"; no stacks were kept: .*attempt-1-stacks\.txt: \w+", hang(reporting))


def test_a_log_that_has_lost_its_beginning_is_heard_and_told_once(reporting: Stage) -> None:
    key = f"{reporting.object}/{reporting.attempt.pods[0].name}"
    for turn in range(1, 5):
        write(reporting, b"still loading\n")
        reporting.memory.given_up[key] = (14 * turn - 1, turn)
        reporting.memory.pod(reporting.object, log_from=14 * min(turn, 2))
        assert reporting.after(400).phase == "running"
    told = [event for event in events(reporting.context, reporting.id) if event.kind == "log"]
    assert [event.data["first_byte"] for event in told] == [14, 28]
    assert told[0].message.endswith("is longer than --log-keep-bytes: its first 14 bytes are given up")
