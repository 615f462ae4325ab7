"""kill -9 at each named instant of sweeps, queues and retention, in a process of its own; another one goes on.

Those that concern an object of the cluster are the chaos suite's (docs/chaos.md).
"""

from __future__ import annotations

import os
import shutil
import signal
import warnings
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import func, select

from controlplane import faults
from controlplane.domain.queues import QueueState
from controlplane.domain.retention import DAY_S, Retention
from controlplane.domain.sweeps import SweepSpec
from controlplane.reconcile.outbox import Site
from controlplane.reconcile.reconciler import Reconciler
from controlplane.services import queues, retention, sweeps
from controlplane.services.context import Context
from controlplane.store.points import add_points
from controlplane.store.store import Store
from controlplane.store.tables import Base, Event, Run, Sweep
from tests.cluster.chaos.control import CALL, ELSEWHERE
from tests.cluster.layout import CHECKOUT
from tests.controlplane.memory_cluster import Clock, MemoryCluster

BODY = {"name": "grid", "spec": {"size": "tiny"}, "grid": {"/train/seed": [1, 2, 3]}, "parallelism": 2}
SOURCES = [CHECKOUT / "controlplane" / "services" / f"{name}.py" for name in sorted(ELSEWHERE - {"pieces"})]
POINTS = [name for path in SOURCES for name in CALL.findall(path.read_text("utf-8"))]
KEPT = Retention(1, 1)


def life(home: Path) -> None:
    """A sweep in a queue that is paused and drained, cancelled, deleted and purged. Begun again, it goes on."""
    store, clock, cluster = Store(home), Clock(), MemoryCluster()
    context = Context(store, cluster, home, "http://127.0.0.1:8000", clock=clock, retention=KEPT)
    try:
        if not (home / "ended").exists():
            end_of_a_sweep(context, cluster)
            (home / "ended").touch()
        for _ in range(2):
            clock.sleep(2 * DAY_S)
            retention.enforce(context)
    finally:
        store.close()


def end_of_a_sweep(context: Context, cluster: MemoryCluster) -> None:
    reconciler = Reconciler(context.store, cluster, site=Site(context.url, "image"), clock=context.clock)
    sweep, _ = sweeps.create_sweep(context, SweepSpec.model_validate(BODY), idempotency_key="mine")
    for point in sweep.items:
        folder = context.home / "runs" / point.run
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").touch()
        told = [{"seq": seq, "step": seq, "time": 1.0, "loss": 2.0} for seq in (1, 2)]
        context.store.write(partial(add_points, run_id=point.run, attempt=1, points=told))
    for state in (QueueState.PAUSED, QueueState.DRAINING):
        queues.set_state(context, "default", state)
        reconciler.step()
    assert cluster.created == []
    sweeps.cancel_sweep(context, sweep.id)
    reconciler.step()
    assert sweeps.get(context, sweep.id).phases == {"cancelled": 3}


def dies(home: Path, point: str) -> bool:
    """Whether a process that lives this life and is armed at `point` dies there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of the test's process hold nothing of the child's
        child = os.fork()
    if child == 0:
        code = 1
        try:
            faults._armed = faults.Armed(f"{point}:1")
            life(home)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def check(home: Path) -> tuple[int, int]:
    """Nothing is there in part; how many sweeps and runs there are."""
    store = Store(home)
    try:
        with store.read() as session:
            known = {*session.scalars(select(Run.id))}
            for table in Base.metadata.sorted_tables:
                if "run_id" in table.c:
                    assert {*session.scalars(select(table.c.run_id))} <= known, table.name
            made = session.scalars(select(Sweep.id)).all()
            assert len(made) <= 1
            assert len(known) in ({3} if made and not (home / "ended").exists() else {0, 1, 2, 3})
            last = session.scalars(select(Run.last_event).order_by(Run.id)).all()
            counted = select(func.count(Event.seq)).group_by(Event.run_id).order_by(Event.run_id)
            assert last == session.scalars(counted).all()
            return len(made), len(known)
    finally:
        store.close()


def test_there_are_instants_of_each_kind() -> None:
    assert len(POINTS) == 10
    assert all(CALL.search(path.read_text("utf-8")) for path in SOURCES)


@pytest.mark.unmeasured
@pytest.mark.parametrize("point", POINTS)
def test_killed_there_it_goes_on_as_if_nothing_was(point: str, tmp_path: Path, migrated: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(migrated, home)
    assert dies(home, point), f"{point} was never reached"
    check(home)
    life(home)
    assert check(home) == (1, 0)
    assert [*(home / "runs").iterdir()] == []
