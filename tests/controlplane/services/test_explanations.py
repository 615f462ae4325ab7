"""What `explain` says of a run at each turn of its life."""

from __future__ import annotations

import pytest

from controlplane.clusters.base import Unavailable
from controlplane.domain.errors import NotFound
from controlplane.services.context import Context
from controlplane.services.explanations import explain
from tests.controlplane.memory_cluster import Clock, MemoryCluster
from tests.controlplane.postgres import ON_SQLITE
from tests.controlplane.reconcile.conftest import Stage

pytestmark = ON_SQLITE
FULL = {
    "rank": 1,
    "code": 1,
    "signal": None,
    "reason": "DiskFull",
    "step": 120,
    "last_lines": ["OSError: [Errno 28] No space left on device"],
}


@pytest.fixture
def stage(context: Context, memory: MemoryCluster, clock: Clock) -> Stage:
    stage = Stage(context, memory, clock)
    stage.ask(limits={"max_restarts": 0}, compute={"nodes": 1, "processes_per_node": 2, "cpus_per_node": 2})
    return stage


def fails(stage: Stage) -> None:
    stage.look()
    stage.memory.run(stage.object)
    stage.look()
    stage.memory.end(stage.object, 1, termination=FULL)
    stage.look()


def test_a_failed_run_is_explained_from_its_first_failing_rank(stage: Stage) -> None:
    fails(stage)
    told = explain(stage.context, stage.id)
    assert (told.phase, told.reason, told.attempt, told.rank, told.step) == ("failed", "DiskFull", 1, 1, 120)
    assert (told.exit_code, told.signal) == (1, None)
    assert told.cause
    assert told.mend
    assert told.text.endswith(f"{told.cause} {told.mend}")
    assert "has failed. Attempt 1 ended at step 120: DiskFull: rank 1 ended with exit code 1: OSError" in told.text
    assert "\n" not in told.text
    assert told.last_lines == FULL["last_lines"]


def test_the_log_gives_fifty_lines_where_the_pod_kept_fewer(stage: Stage) -> None:
    fails(stage)
    pod = stage.memory.written
    pod[f"{stage.object}/{stage.object}-master-0"] = b"".join(b"[rank 1] line %d\nof 0\n" % n for n in range(80))
    assert explain(stage.context, stage.id).last_lines == [f"line {number}" for number in range(30, 80)]


def test_what_the_pod_kept_is_told_while_the_cluster_does_not_answer(stage: Stage) -> None:
    fails(stage)
    stage.memory.fail = Unavailable("away")
    assert explain(stage.context, stage.id).last_lines == FULL["last_lines"]


def test_a_run_that_waits_is_explained_by_what_it_waits_for(stage: Stage) -> None:
    stage.memory.fail = Unavailable("connection refused")
    stage.look()
    stage.memory.fail = None
    told = explain(stage.context, stage.id)
    assert (told.phase, told.reason, told.attempt) == ("submitting", "ClusterUnreachable", None)
    assert told.text.count("connection refused") == 1
    assert told.last_lines == []


def test_a_run_of_which_nothing_is_wrong_has_neither_cause_nor_mend(stage: Stage) -> None:
    told = explain(stage.context, stage.id)
    assert (told.reason, told.cause, told.mend) == (None, None, None)
    assert told.text.endswith("waits to be submitted. Nothing is known to be wrong with it.")


def test_an_attempt_that_is_over_is_explained_while_the_next_one_runs(
    context: Context, memory: MemoryCluster, clock: Clock
) -> None:
    stage = Stage(context, memory, clock)
    stage.ask()
    fails(stage)
    assert stage.run.phase == "restarting"
    assert explain(context, stage.id).attempt == 1
    assert explain(context, stage.id, 1).reason == "DiskFull"
    assert explain(context, stage.id, 2).reason is None
    with pytest.raises(NotFound):
        explain(context, stage.id, 3)
