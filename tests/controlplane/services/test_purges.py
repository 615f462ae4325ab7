from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from sqlalchemy import func, select

from controlplane.clusters.base import Traits
from controlplane.domain.errors import BeingPurged, NeededByRun, NotFound
from controlplane.domain.spec import parse_spec
from controlplane.services import changes, metrics, purges, runs, tasks
from controlplane.services.context import Context
from controlplane.services.views import RunView
from controlplane.store.store import Store
from controlplane.store.tables import Base, MetricBlock
from tests.controlplane.memory_cluster import Clock, MemoryCluster
from tests.controlplane.postgres import ON_SQLITE
from tests.controlplane.reconcile.conftest import Stage


@pytest.fixture
def stage(context: Context, memory: MemoryCluster, clock: Clock) -> Stage:
    return Stage(context, memory, clock)


@pytest.fixture
def ended(context: Context, stage: Stage) -> RunView:
    """A run with labels, points and a checkpoint, cancelled and deleted; and another beside it that must stay."""
    runs.create_run(context, parse_spec({"size": "tiny", "labels": {"a": "b"}}), idempotency_key="other")
    run = runs.create_run(context, parse_spec({"size": "tiny", "labels": {"a": "b"}}), idempotency_key="k")[0]
    points = [{"seq": seq, "step": seq, "time": 1.0, "loss": 2.0} for seq in range(1, 8)]
    metrics.add_metrics(context, run.id, 1, points)
    checkpoint = Path(run.folder) / "checkpoints" / "step-00000005-attempt-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "meta.json").write_text("{}")
    runs.cancel_run(context, run.id)
    stage.reconciler.step()
    return run


def rows(store: Store) -> dict[str, int]:
    tables = [table for table in Base.metadata.sorted_tables if "run_id" in table.c or table.name == "runs"]
    with store.read() as session:
        return {table.name: session.scalar(select(func.count()).select_from(table)) or 0 for table in tables}


def test_what_is_shown_is_what_goes_and_nothing_else_does(
    context: Context, stage: Stage, ended: RunView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purges, "POINTS", 3)
    task = tasks.create_task(context, ended.id, "pull")
    runs.cancel_run(context, task.id)
    stage.reconciler.step()
    changes.delete_run(context, ended.id)
    block = MetricBlock(run_id=ended.id, attempt=1, first_seq=8, last_seq=10, points=3, data=b"")
    context.store.write(lambda transaction: transaction.session.add(block))
    before = rows(context.store)
    left = purges.remains(context, ended.id)
    assert (left.tasks, left.attempts, left.points, left.folder_removed, left.size) == ([task.id], 2, 10, True, 2)
    assert rows(context.store) == before
    assert Path(ended.folder).is_dir()
    assert purges.purge(context, ended.id) == left
    assert not Path(ended.folder).exists()
    after = rows(context.store)
    assert (after["runs"], after["attempts"], after["metric_points"], after["run_labels"]) == (1, 1, 0, 1)
    assert after["events"] == before["events"] - left.events
    assert (after["idempotency_keys"], after["metric_blocks"]) == (1, 0)
    for call in (purges.remains, purges.purge, changes.restore_run):
        with pytest.raises(NotFound):
            call(context, ended.id)


@ON_SQLITE
def test_only_a_deleted_run_is_purged(context: Context, ended: RunView) -> None:
    with pytest.raises(NotFound, match="no deleted run"):
        purges.purge(context, ended.id)
    assert runs.get(context, ended.id).phase == "cancelled"


@ON_SQLITE
def test_a_folder_that_a_live_run_begins_from_stays_until_that_has_ended(
    context: Context, stage: Stage, ended: RunView
) -> None:
    again = runs.retry_run(context, ended.id)[0]
    changes.delete_run(context, ended.id)
    with pytest.raises(NeededByRun, match=again.id):
        purges.purge(context, ended.id)
    assert Path(ended.folder).is_dir()
    runs.cancel_run(context, again.id)
    stage.reconciler.step()
    assert purges.purge(context, ended.id).folder_removed


@ON_SQLITE
def test_a_folder_that_its_user_named_stays(context: Context, stage: Stage, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    run = runs.create_run(context, parse_spec({"size": "tiny", "checkpoint": {"uri": str(mine)}}))[0]
    runs.cancel_run(context, run.id)
    stage.reconciler.step()
    changes.delete_run(context, run.id)
    assert not purges.purge(context, run.id).folder_removed
    assert mine.is_dir()


@pytest.fixture
def afar(context: Context, clock: Clock) -> Stage:
    """A deleted run that was cancelled while it ran, on GPUs of a cluster, with its folder where only pods see it."""
    memory = MemoryCluster(cpus=64, memory=1 << 40, gpus=8)
    memory.shown = Traits(kinds=("PyTorchJob", "Job"), shared_folders=False)
    memory.claims["claim"] = frozenset({"ReadWriteMany"})
    stage = Stage(dataclasses.replace(context, cluster=memory, storage="pvc://claim/runs"), memory, clock)
    stage.ask(compute={"gpus_per_node": 8, "gpu": "NVIDIA-H100-80GB-HBM3", "tolerations": [{"operator": "Exists"}]})
    stage.look()
    memory.run(stage.object)
    stage.look()
    stage.cancel()
    stage.look()
    memory.end(stage.object, 143)
    stage.look(2)
    assert stage.run.phase == "cancelled"
    changes.delete_run(stage.context, stage.id)
    return stage


def removes(stage: Stage, removal: str, code: int = 0) -> None:
    """Let the pod of a removal end."""
    stage.reconciler.step()
    name = runs.get(stage.context, removal).kubernetes["name"]
    stage.memory.run(name)
    stage.reconciler.step()
    stage.memory.end(name, code)
    stage.reconciler.step()


@ON_SQLITE
def test_a_folder_that_only_pods_see_is_removed_by_one_before_anything_else_goes(afar: Stage) -> None:
    context, run = afar.context, afar.id
    assert purges.remains(context, run).folder_removed
    removal = purges.purge(context, run).removal
    assert removal is not None
    assert purges.purge(context, run).removal == removal, "asked again, there is still one"
    task = runs.get(context, removal)
    assert (task.task, task.task_of) == ("removal", run)
    assert task.resolved["command"] == ["python", "-m", "teragpt.task", "remove", f"/mnt/teragpt/claim/runs/{run}", run]
    assert (task.resolved["kind"], task.resolved["gpus_per_node"], task.resolved["nodes"]) == ("Job", 0, 1)
    assert task.resolved["placement"] == {"tolerations": [{"operator": "Exists"}]}
    with pytest.raises(BeingPurged, match="can only be purged"):
        changes.restore_run(context, run)
    removes(afar, removal)
    gone = purges.purge(context, run)
    assert (gone.removal, gone.folder_removed, gone.tasks) == (None, True, [removal])
    assert rows(context.store)["runs"] == 0


@ON_SQLITE
def test_a_removal_that_failed_is_asked_for_again_or_the_folder_is_kept(afar: Stage) -> None:
    context, run = afar.context, afar.id
    first = purges.purge(context, run).removal
    removes(afar, str(first), 2)
    second = purges.purge(context, run).removal
    assert second not in {first, None}
    with pytest.raises(BeingPurged):
        changes.restore_run(context, run)
    removes(afar, str(second), 2)
    assert purges.purge(context, run, keep_folder=True).folder_removed is False
    with pytest.raises(NotFound):
        purges.remains(context, run)


@ON_SQLITE
def test_a_run_whose_pods_never_ran_has_left_no_folder(context: Context, memory: MemoryCluster, clock: Clock) -> None:
    memory.shown = Traits(kinds=("Job",), shared_folders=False)
    stage = Stage(dataclasses.replace(context, storage="s3://bucket/runs"), memory, clock)
    stage.ask(compute={"nodes": 1})
    stage.cancel()
    stage.look(2)
    changes.delete_run(stage.context, stage.id)
    gone = purges.purge(stage.context, stage.id)
    assert (gone.removal, gone.folder_removed) == (None, False)
