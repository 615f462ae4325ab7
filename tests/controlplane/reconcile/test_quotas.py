"""A cluster without queues of its own: GPUs of namespaces are shared out in order, never more than there are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.clusters.base import Traits
from controlplane.domain.changes import RunChanges
from controlplane.domain.defaults import parse_defaults
from controlplane.domain.errors import InvalidSpec
from controlplane.services import changes, runs
from controlplane.services.context import Context
from controlplane.services.explanations import explain
from controlplane.store.store import Store
from tests.controlplane.memory_cluster import Clock, MemoryCluster
from tests.controlplane.postgres import ON_SQLITE
from tests.controlplane.reconcile.conftest import Stage
from tests.controlplane.reconcile.test_crashes import Assassin, outlive

QUOTAS = {"default": 4, "team": 2}


@pytest.fixture
def memory() -> MemoryCluster:
    memory = MemoryCluster(cpus=64, memory=1 << 40, gpus=64)
    memory.shown = Traits(others=("team", "free"), shared_folders=False, quotas=QUOTAS)
    return memory


@pytest.fixture
def context(store: Store, memory: MemoryCluster, clock: Clock) -> Context:
    return Context(store, memory, store.home, "http://127.0.0.1:8000", clock=clock, storage="s3://bucket/runs")


def ask(stage: Stage, name: str, gpus: int, namespace: str | None = None, priority: str | None = None) -> str:
    more = {"kubernetes": {"namespace": namespace}} if namespace else {}
    scheduling = {"scheduling": {"priority": priority}} if priority else {}
    return stage.ask(name=name, compute={"nodes": 1, "gpus_per_node": gpus}, **more, **scheduling).id


def told(stage: Stage, run_id: str) -> tuple[str, str | None, str | None]:
    run = runs.get(stage.context, run_id)
    return run.phase, run.reason, run.message


def test_runs_wait_in_line_for_the_gpus_of_their_namespace(stage: Stage) -> None:
    first, second, third = (ask(stage, name, gpus) for name, gpus in (("a", 3), ("b", 2), ("c", 1)))
    other, unbounded = ask(stage, "d", 2, "team"), ask(stage, "e", 8, "free")
    stage.look(2)
    words = "place {} in line: of the 4 GPUs of namespace 'default' 1 are free, and it needs {}"
    assert told(stage, second) == ("queued", "WaitsForGPUs", words.format(1, 2))
    assert told(stage, third) == ("queued", "WaitsForGPUs", words.format(2, 1))  # it does not pass the larger one
    assert [told(stage, one)[0] for one in (first, other, unbounded)] == ["pending"] * 3
    assert "--gpu-quotas" in explain(stage.context, second).text
    stage.id = first
    stage.cancel()
    stage.look()
    assert told(stage, second)[1] == "WaitsForGPUs"  # its pods write a checkpoint
    stage.memory.stop(stage.object)
    stage.look(3)
    assert [told(stage, one)[0] for one in (first, second, third)] == ["cancelled", "pending", "pending"]


def test_a_priority_of_the_installation_counts_in_line(stage: Stage) -> None:
    ask(stage, "first", 4)
    stage.look(2)
    usual = ask(stage, "usual", 4)
    defaults = parse_defaults({"scheduling": {"priority": "high"}})
    stage.context = replace(stage.context, defaults=defaults, laid_out={})
    high = ask(stage, "high", 4)
    stage.look(2)
    places = [(told(stage, one)[2] or "").partition(" in line")[0] for one in (high, usual)]
    assert places == ["place 1", "place 2"]


def test_the_higher_priority_goes_first_also_when_it_changes(stage: Stage) -> None:
    ask(stage, "holds", 4)
    stage.look()
    low, normal, high = (ask(stage, name, 4, priority=name) for name in ("low", "gold", "high"))
    stage.look()
    places = [(told(stage, one)[2] or "")[:7] for one in (high, normal, low)]
    assert places == ["place 1", "place 2", "place 3"]
    changes.change_run(stage.context, low, RunChanges.model_validate({"scheduling": {"priority": "high"}}))
    stage.look()
    assert [(told(stage, one)[2] or "")[:7] for one in (low, high, normal)] == ["place 1", "place 2", "place 3"]


def test_a_restart_keeps_its_gpus_and_a_suspension_gives_them_back(running: Stage) -> None:
    running.cancel()
    running.look(3)
    first, second = ask(running, "a", 4), ask(running, "b", 4)
    running.look()
    running.id = first
    running.memory.run(running.object)
    running.look()
    running.memory.end(running.object, 1)
    running.look(2)
    assert (told(running, first)[0], told(running, second)[1]) == ("restarting", "WaitsForGPUs")
    running.after(5)
    assert told(running, first)[0] == "pending"
    running.suspend()
    running.look()
    running.memory.stop(running.object)
    running.look(3)
    assert (told(running, first)[0], told(running, second)[0]) == ("suspended", "pending")
    running.resume()
    running.look(2)
    assert told(running, first)[:2] == ("queued", "WaitsForGPUs")


def test_more_than_the_whole_quota_is_refused(stage: Stage) -> None:
    with pytest.raises(InvalidSpec) as refused:
        ask(stage, "a", 3, "team")
    (problem,) = refused.value.problems
    assert (problem.pointer, problem.code) == ("/compute/gpus_per_node", "beyond_quota")
    assert problem.detail == "got 3 GPUs in all; allowed in namespace team: 2"


@ON_SQLITE
@pytest.mark.unmeasured
@pytest.mark.parametrize("before", [True, False])
def test_killed_at_any_instant_no_more_gpus_are_held_than_there_are_and_all_get_theirs(
    monkeypatch: pytest.MonkeyPatch, context: Context, memory: MemoryCluster, clock: Clock, before: bool
) -> None:
    stage = Stage(context, memory, clock)
    assassin = Assassin(monkeypatch, context.store, memory)
    gpus = {ask(stage, f"run-{at}", asked): asked for at, asked in enumerate((1, 3, 2, 4, 1, 1))}

    def within_quota() -> bool:
        holding = (job for job in memory.jobs.values() if any(pod.phase in {"Pending", "Running"} for pod in job.pods))
        return sum(gpus[job.run_id] for job in holding) <= QUOTAS["default"]

    def ended() -> bool:
        return all(runs.get(context, one).phase == "succeeded" for one in gpus)

    outlive(stage, assassin, ended, within_quota, before=before)
    assert sorted(run_id for run_id, _ in memory.made) == sorted(gpus)
