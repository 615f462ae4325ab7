from __future__ import annotations

from typing import Any

import pytest

from controlplane.domain.errors import NotFound
from controlplane.domain.spec import parse_spec
from controlplane.reconcile.packer import Packer
from controlplane.services.context import Context
from controlplane.services.measured import compared, finished
from controlplane.services.metrics import add_metrics
from controlplane.services.runs import create_run
from controlplane.store.history import WAIT_S
from tests.controlplane.memory_cluster import Clock, MemoryCluster
from tests.controlplane.reconcile.conftest import Stage


@pytest.fixture
def memory() -> MemoryCluster:
    return MemoryCluster(gpus=4)


def point(seq: int, rate: float, **values: Any) -> dict[str, Any]:
    return {"seq": seq, "step": seq, "time": float(seq), "tokens_per_s": rate, "memory_bytes": 4e9 + seq, **values}


def test_a_runs_steps_are_compared_with_its_plan(context: Context) -> None:
    small = {"gpus_per_node": 1, "cpus_per_node": 1, "memory_per_node": 1 << 30}
    run, _ = create_run(context, parse_spec({"size": "124m", "compute": small}))
    before = compared(context, run.id)
    assert before.measured == {}
    assert before.points == 0
    rate = before.planned["tokens_per_second"] / 2
    add_metrics(context, run.id, 1, [point(1, 1.0), point(2, rate, mfu=0.2), point(3, rate, mfu=0.2, loss=3.0)])
    found = compared(context, run.id)
    assert found.points == 2
    assert found.measured_over_planned["step_seconds"] == pytest.approx(2)
    assert found.measured["peak_memory"] == 4e9 + 3
    assert found.measured["mfu"] == 0.2
    assert found.planned == before.planned


def test_a_run_without_a_plan_is_measured_all_the_same(context: Context) -> None:
    mine = {"size": "tiny", "train": {"precision": "fp64"}, "compute": {"gpus_per_node": 0}}
    run, _ = create_run(context, parse_spec(mine))
    add_metrics(context, run.id, 1, [point(1, 5.0), point(2, 2048.0)])
    found = compared(context, run.id)
    assert (found.planned, found.measured_over_planned) == ({}, {})
    assert found.measured["step_seconds"] == 1.0
    with pytest.raises(NotFound):
        compared(context, "nobody")


def test_a_run_that_has_ended_keeps_what_it_took(context: Context, memory: MemoryCluster, clock: Clock) -> None:
    stage = Stage(context, memory, clock)
    stage.ask(compute={"gpus_per_node": 0})
    later = [{**point(seq, 2048.0), "step": seq + 1} for seq in (1, 2, 3)]
    add_metrics(context, stage.id, 1, [point(1, 1.0), point(2, 4096.0), point(3, 4096.0)])
    add_metrics(context, stage.id, 1, [{**one, "seq": one["seq"] + 3} for one in later])
    before = compared(context, stage.id)
    assert finished(context) == []
    stage.cancel()
    stage.look()
    clock.sleep(WAIT_S + 1)
    while Packer(context.store, clock=clock).step():
        pass
    (one,) = finished(context)
    assert compared(context, stage.id) == before
    assert (one.run, one.gpu, one.layout["precision"]) == (stage.id, "cpu-core", "fp32")
    assert one.measured_over_planned == before.measured_over_planned
    assert one.measured_over_planned["mfu"] == pytest.approx(1 / one.measured_over_planned["step_seconds"])
