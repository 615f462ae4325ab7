from __future__ import annotations

from typing import Any

import pytest

from controlplane.domain.spec import parse_spec
from controlplane.reconcile.outbox import Site
from controlplane.reconcile.reconciler import Reconciler
from controlplane.services import runs
from controlplane.services.attempts import attempt as get_attempt
from controlplane.services.attempts import attempts, events
from controlplane.services.context import Context
from controlplane.services.views import AttemptView, RunView
from tests.controlplane.memory_cluster import Clock, MemoryCluster

SITE = Site("http://127.0.0.1:8000", "trainer:test")


class Stage:
    """A control plane without threads: one run, a cluster in memory, a clock that stands; each look is a call."""

    def __init__(self, context: Context, memory: MemoryCluster, clock: Clock) -> None:
        self.context, self.memory, self.clock = context, memory, clock
        self.restart()
        self.id = ""

    def restart(self) -> None:
        """What a control plane that was killed and started again has: nothing but the store and the cluster."""
        self.reconciler = Reconciler(self.context.store, self.memory, site=SITE, clock=self.clock)

    def ask(self, **spec: Any) -> RunView:
        run, _ = runs.create_run(self.context, parse_spec({"size": "tiny", **spec}))
        self.id = run.id
        return run

    def look(self, times: int = 1) -> RunView:
        for _ in range(times):
            self.reconciler.step()
        return self.run

    def after(self, seconds: float) -> RunView:
        self.clock.sleep(seconds)
        return self.look()

    def cancel(self) -> RunView:
        return runs.cancel_run(self.context, self.id)

    def suspend(self) -> RunView:
        return runs.suspend_run(self.context, self.id)

    def resume(self) -> RunView:
        return runs.resume_run(self.context, self.id)

    @property
    def run(self) -> RunView:
        return runs.get(self.context, self.id)

    @property
    def attempt(self) -> AttemptView:
        return get_attempt(self.context, self.id)

    @property
    def attempts(self) -> list[AttemptView]:
        return attempts(self.context, self.id)

    @property
    def object(self) -> str:
        return self.attempt.name

    @property
    def transitions(self) -> list[int]:
        """Numbers of the transitions that the run's events tell of."""
        return [one.data["transition"] for one in events(self.context, self.id) if one.kind == "phase"]


@pytest.fixture
def stage(context: Context, memory: MemoryCluster, clock: Clock) -> Stage:
    return Stage(context, memory, clock)


@pytest.fixture
def running(stage: Stage) -> Stage:
    """A run whose pods all run."""
    stage.ask()
    stage.look()
    stage.memory.run(stage.object)
    stage.look()
    return stage
