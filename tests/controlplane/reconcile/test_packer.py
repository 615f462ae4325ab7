"""Points of runs that have ended are packed, and nobody who reads them sees a difference."""

from __future__ import annotations

import random
from typing import Any

import pytest
from sqlalchemy import func, select

from controlplane.reconcile.packer import Packer
from controlplane.services import metrics
from controlplane.services.context import Context
from controlplane.store import history
from controlplane.store.points import newest_seq
from controlplane.store.tables import MetricBlock, MetricPoint, MetricTier
from tests.controlplane.memory_cluster import Clock, MemoryCluster
from tests.controlplane.postgres import ON_SQLITE
from tests.controlplane.reconcile.conftest import Stage


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "BLOCK", 7)
    monkeypatch.setattr(history, "DRAWN", 30)
    monkeypatch.setattr(history, "STRETCHES", 8)


@pytest.fixture
def stage(context: Context, memory: MemoryCluster, clock: Clock) -> Stage:
    stage = Stage(context, memory, clock)
    stage.ask()
    return stage


@pytest.fixture
def packer(stage: Stage) -> Packer:
    return Packer(stage.context.store, clock=stage.clock)


def point(seq: int, **values: Any) -> dict[str, Any]:
    return {"seq": seq, "step": seq, "time": 1e9 + seq, "loss": 5.0 - seq / 100, "lr": None, **values}


def report(stage: Stage, attempt: int, points: list[dict[str, Any]]) -> int:
    return metrics.add_metrics(stage.context, stage.id, attempt, points).seq


def end(stage: Stage) -> None:
    stage.cancel()
    stage.look()
    stage.clock.sleep(history.WAIT_S + 1)


def pack(packer: Packer) -> int:
    steps = 0
    while packer.step():
        steps += 1
    return steps


def count(stage: Stage, table: type[MetricPoint | MetricBlock | MetricTier]) -> int:
    with stage.context.store.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def seen(stage: Stage) -> list[Any]:
    """Everything that readers are given of the run's points."""
    context, run = stage.context, stage.id
    pages = [metrics.points_after(context, run, attempt=1, seq=seq, limit=5) for seq in range(0, 24, 3)]
    return [
        metrics.curve(context, run),
        metrics.curve(context, run, keys=["loss", "step"]),
        metrics.curve(context, run, downsample=2),
        metrics.last_point(context, run),
        metrics.points_after(context, run),
        *pages,
    ]


def test_readers_see_no_difference(stage: Stage, packer: Packer) -> None:
    report(stage, 1, [point(seq, extra=seq if seq % 3 else 0.5) for seq in range(1, 21)])
    report(stage, 1, [point(21, step=20, val_loss=4.5), point(22, step=18, checkpoint=18)])
    before = seen(stage)
    assert not packer.step(), "it lives"
    end(stage)
    assert pack(packer) == 4
    assert (count(stage, MetricPoint), count(stage, MetricBlock), count(stage, MetricTier)) == (0, 4, 0)
    assert seen(stage) == before


def test_points_that_come_after_are_stored_once_and_packed_too(stage: Stage, packer: Packer) -> None:
    report(stage, 1, [point(seq) for seq in [*range(1, 9), *range(12, 20)]])
    end(stage)
    pack(packer)
    assert report(stage, 1, [point(seq) for seq in range(5, 22)]) == 21
    assert count(stage, MetricPoint) == 5
    assert [one["seq"] for one in metrics.points_after(stage.context, stage.id)] == [*range(1, 22)]
    pack(packer)
    assert count(stage, MetricPoint) == 0
    assert [one["seq"] for one in metrics.points_after(stage.context, stage.id)] == [*range(1, 22)]
    assert [one["seq"] for one in metrics.points_after(stage.context, stage.id, attempt=1, seq=9)] == [*range(10, 22)]
    with stage.context.store.read() as session:
        assert newest_seq(session, stage.id, 1) == 21


@ON_SQLITE
def test_points_that_come_in_between_are_not_lost(stage: Stage) -> None:
    report(stage, 1, [point(seq) for seq in (1, 2, 4)])
    end(stage)
    with stage.context.store.read() as session:
        block = history.packed_block(history.next_points(session, stage.id))
    report(stage, 1, [point(3)])
    with pytest.raises(history.Moved):
        stage.context.store.write(lambda transaction: history.replace(transaction, block))
    assert (count(stage, MetricPoint), count(stage, MetricBlock)) == (4, 0)


@ON_SQLITE
@pytest.mark.parametrize("killed", [False, True])
def test_a_long_curve_is_drawn_from_tiers_that_keep_its_ends_and_extremes(stage: Stage, killed: bool) -> None:
    noise = random.Random(1)
    points = [point(seq, loss=noise.gauss(3, 1), lr=1e-3 * seq) for seq in range(1, 201)]
    report(stage, 1, points)
    whole = metrics.curve(stage.context, stage.id)
    end(stage)
    packer = Packer(stage.context.store, clock=stage.clock)
    if killed:  # between the last block and the tiers
        while count(stage, MetricPoint):
            packer.step()
        packer = Packer(stage.context.store, clock=stage.clock)
    pack(packer)
    assert count(stage, MetricTier) == 2
    few = metrics.curve(stage.context, stage.id, downsample=16)
    assert 8 < len(few) <= 16
    assert all(one in whole for one in few)
    by_loss = sorted(whole, key=lambda one: one["loss"])
    assert {1, 200, by_loss[0]["seq"], by_loss[-1]["seq"]} <= {one["seq"] for one in few}
    assert metrics.curve(stage.context, stage.id) == whole
    assert len(metrics.curve(stage.context, stage.id, downsample=150)) > 30, "finer than a tier: from all points"
    assert metrics.curve(stage.context, stage.id, keys=["none"], downsample=16) == []
    of_rate = metrics.curve(stage.context, stage.id, keys=["lr"], downsample=16)
    assert {*of_rate[0]} == {*history.PLACE, "lr"}
    assert of_rate[-1]["lr"] == points[-1]["lr"]


@ON_SQLITE
def test_a_later_attempt_overrules_in_a_tier_as_in_the_curve(stage: Stage, packer: Packer) -> None:
    stage.look()
    stage.memory.run(stage.object)
    stage.look()
    report(stage, 1, [point(seq, loss=100.0 if seq > 40 else 1.0) for seq in range(1, 61)])
    stage.memory.end(stage.object, 1)
    stage.look()
    report(stage, 2, [point(seq, step=seq + 40, loss=2.0) for seq in range(1, 41)])
    end(stage)
    pack(packer)
    assert count(stage, MetricTier) == 1
    drawn = metrics.curve(stage.context, stage.id, downsample=16)
    assert {one["loss"] for one in drawn} == {1.0, 2.0}


@ON_SQLITE
def test_what_cannot_be_packed_stays_and_holds_nothing_up(
    stage: Stage, packer: Packer, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(stage, 1, [point(1)])
    end(stage)
    monkeypatch.setattr(history, "unpack", lambda _: [])
    assert packer.step()
    assert not packer.step()
    assert count(stage, MetricPoint) == 1
