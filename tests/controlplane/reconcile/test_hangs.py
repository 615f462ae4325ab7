"""docs/lifecycle.md, "Verdicts": a hang is silence on both ways."""

from __future__ import annotations

import pytest

from controlplane.services import metrics
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
