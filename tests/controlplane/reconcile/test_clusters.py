"""Several clusters behind one control plane: each run goes where it asks to, and no cluster's trouble is another's."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from controlplane import runfolder
from controlplane.clusters.base import Caller, Traits, Unavailable
from controlplane.domain.errors import InvalidSpec, Unauthorized
from controlplane.domain.spec import parse_spec
from controlplane.domain.sweeps import SweepSpec
from controlplane.reconcile.outbox import void_leases
from controlplane.reconcile.reconciler import Reconciler
from controlplane.services import attempts, changes, plans, purges, runs, stacks, state, sweeps
from controlplane.services.context import Context, Place
from controlplane.services.lists import Filter, list_runs
from controlplane.services.logs import logs
from controlplane.store.store import Store
from controlplane.store.tables import Attempt, Outbox
from controlplane.store.writer import Transaction
from tests.controlplane.memory_cluster import Clock, MemoryCluster
from tests.controlplane.reconcile.conftest import SITE

DUMP = 'Current thread 0x00007f8d3b7fe700 (most recent call first):\n  File "step.py", line 58 in all_reduce\n'


class Plane:
    """A control plane without threads over its own cluster and a further one, `east`; `look` looks at both."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.own, self.east = MemoryCluster(), MemoryCluster()
        self.own.shown = self.east.shown = Traits(shared_folders=False, audience="teragpt")
        self.east.name = "east"
        places = {"east": Place(self.east, "https://control.example", "s3://east/runs")}
        self.context = Context(
            store, self.own, store.home, "http://x", clock=clock, storage="pvc://runs", further=places
        )
        self.own.claims["runs"] = frozenset({"ReadWriteMany"})
        turn = threading.Lock()
        self.reconcilers = [
            Reconciler(store, cluster, site=SITE, of=of, turn=turn, clock=clock)
            for of, cluster in (("", self.own), ("east", self.east))
        ]

    def ask(self, cluster: str | None = None, **spec: Any) -> str:
        compute = {"nodes": 1} | ({"cluster": cluster} if cluster else {})
        run, _ = runs.create_run(self.context, parse_spec({"size": "tiny", "compute": compute, **spec}))
        return run.id

    def look(self, times: int = 2) -> None:
        for _ in range(times):
            for reconciler in self.reconcilers:
                reconciler.step()

    def phase(self, run_id: str) -> str:
        return runs.get(self.context, run_id).phase

    def object(self, run_id: str) -> str:
        return attempts.attempt(self.context, run_id).name


@pytest.fixture
def plane(store: Store, clock: Clock) -> Plane:
    return Plane(store, clock)


def test_a_run_goes_where_it_asks_to_and_to_the_own_cluster_otherwise(plane: Plane) -> None:
    unnamed, named, away = plane.ask(), plane.ask("memory"), plane.ask("east")
    plane.look()
    assert set(plane.own.created) == {plane.object(unnamed), plane.object(named)}
    assert plane.east.created == [plane.object(away)]
    plane.east.run(plane.object(away))
    plane.look()
    assert [plane.phase(one) for one in (unnamed, named, away)] == ["pending", "pending", "running"]
    shown = runs.get(plane.context, away)
    assert (shown.kubernetes["cluster"], shown.folder) == ("east", f"s3://east/runs/{away}")
    assert runs.get(plane.context, unnamed).kubernetes["cluster"] == "memory"
    assert attempts.pods(plane.context, away).live


def test_runs_are_listed_by_the_cluster_that_they_show(plane: Plane) -> None:
    unnamed, named, away = plane.ask(), plane.ask("memory"), plane.ask("east")

    def ids(*clusters: str) -> list[str]:
        return [run.id for run in list_runs(plane.context, Filter(clusters=clusters)).runs]

    assert ids("memory") == [named, unnamed]
    assert ids("east") == [away]
    assert ids("memory", "east") == ids() == [away, named, unnamed]
    assert ids("west") == []
    taken_out = replace(plane.context, further={})
    assert [run.id for run in list_runs(taken_out, Filter(clusters=["east"])).runs] == [away]


def test_one_cluster_that_is_away_holds_up_no_other(plane: Plane) -> None:
    away, here = plane.ask("east"), plane.ask()
    plane.look()
    plane.east.run(plane.object(away))
    plane.look()
    plane.east.fail = Unavailable("no route")
    later, waits = plane.ask(), plane.ask("east")
    plane.own.run(plane.object(here))
    plane.look(5)
    assert [plane.phase(one) for one in (away, here, later)] == ["running", "running", "pending"]
    run = runs.get(plane.context, waits)
    assert (run.phase, run.reason) == ("submitting", "ClusterUnreachable")
    parts = state.components(plane.context)
    assert (parts["cluster"].ready, parts["cluster east"].ready) == (True, False)


def test_every_cluster_is_told_of_with_its_own_storage(plane: Plane) -> None:
    first, second = state.clusters(plane.context)
    assert (first.name, first.storage) == ("memory", "pvc://runs")
    assert (second.name, second.storage, second.ready) == ("east", "s3://east/runs", True)


def test_a_preview_is_of_the_cluster_that_is_asked_for(plane: Plane) -> None:
    shown = plans.preview(plane.context, parse_spec({"size": "tiny", "compute": {"cluster": "east", "nodes": 1}}))
    assert "https://control.example" in str(shown.manifest)
    plane.east.fail = Unavailable("no route")
    unknown = plans.preview(plane.context, parse_spec({"size": "tiny", "compute": {"cluster": "east", "nodes": 1}}))
    assert unknown.dry_run.result == "unknown"


def test_a_cluster_that_is_not_there_is_refused_by_name(plane: Plane) -> None:
    with pytest.raises(InvalidSpec, match="got 'west'; allowed: the installation's clusters, memory, east") as refused:
        plane.ask("west")
    assert [one.pointer for one in refused.value.problems] == ["/compute/cluster"]


def test_a_run_whose_cluster_was_taken_out_waits_until_it_is_back(plane: Plane) -> None:
    run_id = plane.ask("east")
    plane.look()
    plane.east.run(plane.object(run_id))
    plane.look()
    without = Context(plane.context.store, plane.own, plane.context.home, "http://x", clock=plane.context.clock)
    own = plane.reconcilers[0]
    for _ in range(5):
        own.step()
    assert runs.get(without, run_id).phase == "running"
    assert runs.get(without, run_id).kubernetes["cluster"] == "east"
    assert logs(without, run_id).lines == []
    runs.cancel_run(without, run_id)
    own.step()
    assert plane.own.deleted == plane.east.deleted == []
    plane.look()
    assert plane.east.deleted == [plane.object(run_id)]


def test_a_pod_proves_who_it_is_to_its_own_cluster(plane: Plane) -> None:
    away = plane.ask("east")
    plane.look()
    plane.east.run(plane.object(away))
    plane.look()
    pod = attempts.attempt(plane.context, away).pods[0]
    plane.own.callers["a.b.c"] = Caller(pod.name, str(pod.uid))
    with pytest.raises(Unauthorized):
        attempts.authenticate(plane.context, away, "a.b.c")
    plane.east.callers["a.b.c"] = Caller(pod.name, str(pod.uid))
    assert attempts.authenticate(plane.context, away, "a.b.c") == 1


def test_each_cluster_has_a_line_of_its_own(plane: Plane) -> None:
    plane.own.shown = plane.east.shown = Traits(shared_folders=False, gang=False)
    here, behind = (plane.ask(compute={"nodes": 2}) for _ in range(2))
    away = plane.ask(compute={"nodes": 2, "cluster": "east"})
    plane.look()
    assert [plane.phase(one) for one in (here, behind, away)] == ["pending", "queued", "pending"]
    assert runs.get(plane.context, behind).reason == "WaitsForTurn"


def test_stacks_that_ranks_printed_in_pods_are_read_from_their_logs(plane: Plane) -> None:
    run = plane.ask(compute={"nodes": 2, "cluster": "east"})
    plane.look()
    plane.east.run(plane.object(run))
    plane.look()
    assert stacks.stacks(plane.context, run).items == []
    master, worker = (pod.name for pod in attempts.attempt(plane.context, run).pods)
    plane.east.written[f"{plane.object(run)}/{master}"] = f"step 1/9\n{DUMP}step 2/9\n".encode()
    told = "".join(f"[rank 1] {line}\n" for line in DUMP.splitlines())
    plane.east.written[f"{plane.object(run)}/{worker}"] = told.encode()
    seen = stacks.stacks(plane.context, run)
    assert [(one.file, one.text) for one in seen.items] == [
        ("attempt-1-rank-0.log", DUMP),
        ("attempt-1-rank-1.log", DUMP),
    ]


def hung(transaction: Transaction) -> None:
    transaction.session.execute(update(Attempt).values(reason="HangDetected"))


def test_the_newest_of_more_stacks_than_are_shown_are_told(
    plane: Plane, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runfolder, "MOST_STACKS", 1)
    run = plane.ask(compute={"nodes": 2, "cluster": "east"})
    for number in (1, 2):
        plane.look()
        name = plane.object(run)
        plane.east.run(name)
        plane.look()
        for pod in attempts.attempt(plane.context, run).pods:
            plane.east.written[f"{name}/{pod.name}"] = DUMP.encode()
        assert [one.file for one in stacks.stacks(plane.context, run).items] == [f"attempt-{number}-rank-0.log"]
        for index in (0, 1):
            plane.east.end(name, 1, index)
        plane.look(4)
        plane.context.store.write(hung)
        clock.now += 3600


def test_runs_with_a_queue_of_the_clusters_own_stand_in_no_line_of_ours(plane: Plane, clock: Clock) -> None:
    plane.own.shown = Traits(shared_folders=False, gang=False, queues=True)
    two = {"nodes": 2}
    asked = [plane.ask(compute=two, scheduling=queue) for queue in ({"queue": "team"}, {"queue": "team"}, {}, {})]
    plane.look()
    assert [plane.phase(one) for one in asked] == ["pending", "pending", "pending", "queued"]
    for one in asked[:3]:
        for index in (0, 1):
            plane.own.pod(plane.object(one), index, reason="Unschedulable")
    clock.now += 301
    plane.look()
    reasons = [attempts.attempt(plane.context, one).reason for one in asked[:3]]
    assert reasons == [None, None, "Requeued"], "who holds nobody up keeps its place in the cluster's own queue"


def test_a_sweep_over_clusters_keeps_its_parallelism(plane: Plane) -> None:
    points = [{"compute": {"cluster": name}, "train": {"seed": seed}} for seed in (0, 1) for name in ("east", "memory")]
    asked = {"parallelism": 2, "spec": {"size": "tiny", "compute": {"nodes": 1}}, "points": points}
    sweeps.create_sweep(plane.context, SweepSpec.model_validate(asked))
    plane.look(4)
    assert len(plane.own.created) + len(plane.east.created) == 2


def test_leases_are_void_where_a_cluster_is_taken_up_anew_and_nowhere_else(plane: Plane) -> None:
    ids = {plane.ask(): "", plane.ask("east"): "east"}
    store = plane.context.store
    store.write(lambda transaction: transaction.session.execute(update(Outbox).values(lease="x")))
    void_leases(store, "east")
    with store.read() as session:
        leases = {ids[row.run_id]: row.lease for row in session.query(Outbox)}
    assert leases == {"": "x", "east": None}


def test_what_a_purged_run_left_is_forgotten_by_its_cluster(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    away, forgotten = plane.ask("east"), list[str]()
    runs.cancel_run(plane.context, away)
    plane.look()
    monkeypatch.setattr(plane.east, "forget", forgotten.append)
    name = plane.object(away)
    changes.delete_run(plane.context, away)
    purges.purge(plane.context, away)
    assert forgotten == [name]
