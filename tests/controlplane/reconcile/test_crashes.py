"""kill -9 at every instant: after each, a new control plane on the same store and cluster goes on.

An instant is a commit or a call to the cluster; the control plane dies before it or after it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from controlplane.clusters.base import ObservedJob, Unavailable
from controlplane.services.attempts import attempts, events
from controlplane.services.context import Context
from controlplane.store.store import Store
from controlplane.store.tables import Outbox
from tests.controlplane.memory_cluster import Clock, MemoryCluster
from tests.controlplane.postgres import ON_SQLITE
from tests.controlplane.reconcile.conftest import Stage

TERMINAL = {"succeeded", "failed", "cancelled"}
INSTANTS = 40  # a few more than `life` has
PARTS = range(6)  # of them, so that a test is not long


class Killed(BaseException):
    """kill -9, as far as a thread can tell."""


class Assassin:
    """Kills the control plane at the `at`-th instant, before or after it; counts instants otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, store: Store, memory: MemoryCluster) -> None:
        self.at: int | None = None
        self.before = True
        self.count = 0
        self.armed = False
        for target, names in ((store, ["write"]), (memory, ["create", "delete", "observe"])):
            for name in names:
                monkeypatch.setattr(target, name, self._around(getattr(target, name)))

    def _around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def instant(*arguments: Any, **named: Any) -> Any:
            if not self.armed:
                return call(*arguments, **named)
            self.count += 1
            if self.count == self.at and self.before:
                raise Killed
            result = call(*arguments, **named)
            if self.count == self.at:
                raise Killed
            return result

        return instant

    def look(self, stage: Stage) -> bool:
        """A look of the control plane; whether it was killed, and started again."""
        self.armed = True
        try:
            stage.reconciler.step()
        except Killed:
            self.armed = False
            stage.restart()
            return True
        finally:
            self.armed = False
        return False


def outlive(
    stage: Stage, assassin: Assassin, ended: Callable[[], bool], holds: Callable[[], bool], *, before: bool
) -> None:
    """Looks until it has `ended`, each killed at another instant, while now and then a job ends; each `holds`."""
    looks = 0
    while not ended():
        assassin.at, assassin.before, assassin.count = 1 + looks % 7, before, 0
        assassin.look(stage)
        assert holds()
        if looks % 3 == 2 and stage.memory.jobs:
            name = min(stage.memory.jobs)
            stage.memory.run(name)
            stage.memory.end(name, 0)
        looks += 1
        assert looks < 200
        stage.clock.sleep(61)


def life(stage: Stage, assassin: Assassin) -> None:
    """Two attempts, the second one cancelled: every kind of write and call."""
    stage.ask(limits={"max_restarts": 1})
    for event in ("nothing", "run", "crash", "wait", "run", "cancel", "stop", "nothing", "nothing"):
        name = stage.object
        if event == "run" and name in stage.memory.jobs:
            stage.memory.run(name)
        if event == "crash" and name in stage.memory.jobs:
            stage.memory.end(name, 1)
        if event == "cancel":
            stage.cancel()
        if event == "stop" and name in stage.memory.jobs:
            stage.memory.stop(name)
        if event == "wait":
            stage.clock.sleep(5)
        if assassin.look(stage):
            stage.look()
        stage.clock.sleep(2)


def check(stage: Stage) -> None:
    made = Counter(stage.memory.made)
    assert set(made.values()) <= {1}, "an attempt had two objects"
    assert set(stage.memory.created) <= {one.name for one in stage.attempts}
    numbers = [one.seq for one in events(stage.context, stage.id)]
    assert numbers == list(range(1, len(numbers) + 1))
    entered = [one.data["phase"] for one in events(stage.context, stage.id) if one.kind == "phase"]
    assert sum(phase in TERMINAL for phase in entered) <= 1, "a terminal phase was written twice"


def test_a_life_has_fewer_instants(monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
    assassin = Assassin(monkeypatch, stage.context.store, stage.memory)
    life(stage, assassin)
    check(stage)
    assert stage.run.phase == "cancelled"
    assert len(stage.attempts) == 2
    assert left_in_outbox(stage) == []
    assert INSTANTS - 10 < assassin.count < INSTANTS


@pytest.mark.unmeasured
@ON_SQLITE
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("part", PARTS)
def test_killed_at_any_instant_it_goes_on_as_if_nothing_was(
    monkeypatch: pytest.MonkeyPatch, context: Context, memory: MemoryCluster, clock: Clock, before: bool, part: int
) -> None:
    killed_and_gone_on(monkeypatch, Stage(context, memory, clock), part, before=before)


@pytest.mark.parametrize("store", ["postgres"], indirect=True)
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("part", [pytest.param(part, marks=pytest.mark.deep if part % 3 else ()) for part in PARTS])
def test_killed_at_a_sixth_of_the_instants_it_goes_on_on_postgres(
    monkeypatch: pytest.MonkeyPatch, context: Context, memory: MemoryCluster, clock: Clock, before: bool, part: int
) -> None:
    killed_and_gone_on(monkeypatch, Stage(context, memory, clock), part, before=before)


def killed_and_gone_on(monkeypatch: pytest.MonkeyPatch, stage: Stage, part: int, *, before: bool) -> None:
    """A life for each of a sixth of the instants, in which the control plane is killed there."""
    assassin = Assassin(monkeypatch, stage.context.store, stage.memory)
    for at in range(part + 1, INSTANTS, len(PARTS)):
        stage.memory.jobs.clear()
        stage.memory.created.clear()
        stage.memory.made.clear()
        assassin.at, assassin.before, assassin.count = at, before, 0
        life(stage, assassin)
        stage.look(3)
        check(stage)
        assert stage.run.phase == "cancelled"
        assert len(stage.attempts) == 2
        assert left_in_outbox(stage) == []


MOVES = st.lists(
    st.sampled_from(["look", "look", "look", "run", "ok", "crash", "bad", "stopped", "lost", "vanish", "delete", "stop",
                     "cancel", "away", "back", "wait", "kill"]),
    max_size=40,
)  # fmt: skip


def make(stage: Stage, move: str, assassin: Assassin, chance: random.Random) -> None:
    """One thing that happens to the control plane, or else to the cluster."""
    if move == "look":
        assassin.look(stage)
    elif move == "cancel":
        stage.cancel()
    elif move in ("away", "back"):
        stage.memory.fail = Unavailable("away") if move == "away" else None
    elif move == "wait":
        stage.clock.sleep(chance.choice([0.5, 5, 400]))
    elif move == "kill":
        assassin.at, assassin.before, assassin.count = chance.randrange(1, 6), chance.random() < 0.5, 0
    elif (job := stage.memory.jobs.get(stage.object)) is not None:
        change(stage.memory, job, move, chance)


def change(memory: MemoryCluster, job: ObservedJob, move: str, chance: random.Random) -> None:
    """One thing that happens to an object, where it can."""
    codes = {"ok": 0, "crash": 1, "bad": 2, "stopped": 143, "lost": None}
    live = [index for index, pod in enumerate(job.pods) if pod.phase in ("Pending", "Running")]
    if move == "run" and len(live) == len(job.pods):
        memory.run(job.name)
    elif move in codes and live:
        memory.end(job.name, codes[move], chance.choice(live))
    elif move == "vanish":
        memory.vanish(job.name)
    elif move == "delete":
        memory.delete(job.name)
    elif move == "stop":
        memory.stop(job.name)


@ON_SQLITE
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=MOVES, nodes=st.integers(1, 3), seed=st.integers(0, 1 << 16))
def test_whatever_happens_in_whatever_order_one_object_an_attempt_and_one_end(
    context: Context, memory: MemoryCluster, clock: Clock, moves: list[str], nodes: int, seed: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        memory.fail = None
        memory.jobs.clear()
        memory.created.clear()
        memory.made.clear()
        stage = Stage(context, memory, clock)
        assassin = Assassin(patch, context.store, memory)
        stage.ask(compute={"nodes": nodes, "processes_per_node": 1}, limits={"max_restarts": 2})
        ended: str | None = None
        for move in moves:
            try:
                make(stage, move, assassin, random.Random(seed))
            except Unavailable:
                continue
            check(stage)
            phase = stage.run.phase
            assert ended is None or phase == ended, "a terminal phase was left"
            ended = phase if phase in TERMINAL else None
        assassin.at, memory.fail = None, None
        drain(stage)
        check(stage)
        assert stage.run.phase in TERMINAL
        assert all(one.finished_at is not None for one in attempts(context, stage.id))


def drain(stage: Stage) -> None:
    """Cancel what still lives, let pods obey, and look until nothing is left to do."""
    stage.cancel()
    for _ in range(6):
        stage.after(61)
        for name, job in list(stage.memory.jobs.items()):
            if job.deleting:
                stage.memory.stop(name)
    assert stage.memory.jobs == {}, "an object outlived its run"
    assert left_in_outbox(stage) == [], "an errand outlived its run"


def left_in_outbox(stage: Stage) -> list[tuple[str, str]]:
    with stage.context.store.read() as session:
        return [(row.object_name, row.op) for row in session.scalars(select(Outbox))]
