from __future__ import annotations

from typing import Any

import pytest

from controlplane.domain.errors import NotFound, NotReporting
from controlplane.services import attempts
from controlplane.services.checkpoints import request_checkpoint
from controlplane.services.context import Context
from controlplane.services.metrics import add_metrics
from tests.controlplane.memory_cluster import Clock, MemoryCluster
from tests.controlplane.reconcile.conftest import Stage


@pytest.fixture
def stage(context: Context, memory: MemoryCluster, clock: Clock) -> Stage:
    """A run whose pods run."""
    stage = Stage(context, memory, clock)
    stage.ask()
    stage.look()
    memory.run(stage.object)
    stage.look()
    return stage


def report(stage: Stage, seq: int, **values: Any) -> None:
    point = {"seq": seq, "step": seq, "time": 1795518320.0 + seq, **values}
    add_metrics(stage.context, stage.id, stage.run.attempt, [point])


def requested(stage: Stage, attempt: int) -> int:
    """What the attempt's trainer hears when it has nothing to tell."""
    return add_metrics(stage.context, stage.id, attempt, []).save


def asked(stage: Stage) -> list[dict[str, Any]]:
    return [one.data for one in attempts.events(stage.context, stage.id) if one.kind == "save"]


def test_asking_twice_before_the_next_report_is_asking_once(stage: Stage) -> None:
    report(stage, 1, loss=4.0)
    assert requested(stage, 1) == 0
    before = stage.run
    request_checkpoint(stage.context, stage.id, actor="ada")
    after = request_checkpoint(stage.context, stage.id, actor="ada")
    assert (after.phase, after.desired, after.revision) == (before.phase, before.desired, before.revision)
    first = requested(stage, 1)
    assert first > 0
    report(stage, 2, checkpoint=2)
    request_checkpoint(stage.context, stage.id, actor="bob")
    assert requested(stage, 1) > first
    assert asked(stage) == [{"actor": "ada", "point": 1}, {"actor": "bob", "point": 2}]


def test_nobody_is_asked_before_the_attempt_has_reported(stage: Stage) -> None:
    with pytest.raises(NotReporting, match=r"has not reported a step yet, .* there is none yet"):
        request_checkpoint(stage.context, stage.id)
    report(stage, 1, loss=4.0)
    report(stage, 2, checkpoint=2)
    request_checkpoint(stage.context, stage.id)
    stage.memory.end(stage.object, 1)
    stage.look(2)
    with pytest.raises(NotReporting, match=r"is restarting, .* the last one is of step 2"):
        request_checkpoint(stage.context, stage.id)
    stage.after(60)
    stage.memory.run(stage.object)
    stage.look()
    assert stage.run.attempt == 2
    with pytest.raises(NotReporting, match="has not reported a step yet"):
        request_checkpoint(stage.context, stage.id)
    assert requested(stage, 2) == 0  # what the first attempt was asked for is not asked of this one


def test_a_run_that_is_to_stop_writes_its_checkpoint_anyway(stage: Stage) -> None:
    report(stage, 1, loss=4.0)
    stage.suspend()
    with pytest.raises(NotReporting, match="is to be suspended"):
        request_checkpoint(stage.context, stage.id)
    stage.resume()
    stage.cancel()
    stage.look(2)
    with pytest.raises(NotReporting, match="is cancelling"):
        request_checkpoint(stage.context, stage.id)
    with pytest.raises(NotFound):
        request_checkpoint(stage.context, "nobody")
    assert asked(stage) == []
