from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.clusters.base import Traits
from controlplane.domain.changes import RunChanges, merged
from controlplane.domain.defaults import parse_defaults
from controlplane.domain.errors import Changed, InvalidSpec, NotAlive, NotFound, StillRunning
from controlplane.domain.spec import parse_spec
from controlplane.services import attempts, changes, runs
from controlplane.services.context import Context
from controlplane.services.lists import Filter, list_runs
from controlplane.services.views import RunView
from tests.controlplane.memory_cluster import Clock, MemoryCluster
from tests.controlplane.postgres import ON_SQLITE
from tests.controlplane.reconcile.conftest import Stage

VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
DOCUMENTS = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)


@pytest.fixture
def stage(context: Context, memory: MemoryCluster, clock: Clock) -> Stage:
    return Stage(context, memory, clock)


def fail(stage: Stage) -> None:
    """Bring the run's attempt to running, and let its pod crash."""
    stage.look()
    stage.memory.run(stage.object)
    stage.look()
    stage.memory.end(stage.object, 1)
    stage.look()


def change(context: Context, run: str, revisions: set[int] | None = None, **changed: Any) -> RunView:
    return changes.change_run(context, run, RunChanges.model_validate(changed), revisions=revisions)


def test_labels_merge_and_everything_that_is_left_out_stays(context: Context) -> None:
    run, _ = runs.create_run(
        context, parse_spec({"size": "tiny", "labels": {"team": "lm", "draft": "yes"}, "notes": "one", "pinned": True})
    )
    assert (run.notes, run.pinned, run.revision, run.user) == ("one", True, 1, "local")
    changed = change(context, run.id, labels={"draft": None, "stage": "2"}, limits={"max_silence_s": 60})
    assert changed.labels == {"team": "lm", "stage": "2"}
    assert (changed.notes, changed.pinned, changed.revision) == ("one", True, 2)
    assert changed.spec == {**run.spec, "labels": changed.labels, "limits": {"max_silence_s": 60}}
    assert changed.resolved == run.resolved
    cleared = change(context, run.id, notes=None, pinned=False, limits={"max_silence_s": None})
    assert (cleared.notes, cleared.pinned, cleared.labels) == (None, False, changed.labels)
    assert cleared == runs.get(context, run.id)
    *_, first, last = attempts.events(context, run.id)
    assert first.message == "local changed labels, limits.max_silence_s"
    assert last.data == {"actor": "local", "changed": ["notes", "pinned", "limits.max_silence_s"], "revision": 3}


def test_a_change_to_what_is_already_so_changes_nothing(context: Context, run: RunView) -> None:
    told = attempts.events(context, run.id)
    asked: dict[str, Any] = {"labels": {"absent": None}, "pinned": False, "limits": {"max_restarts": None}}
    assert change(context, run.id, notes=None, **asked) == change(context, run.id) == run
    assert attempts.events(context, run.id) == told


def test_a_change_made_from_another_revision_is_refused_and_changes_nothing(context: Context, run: RunView) -> None:
    assert change(context, run.id, {1}, notes="first").revision == 2
    with pytest.raises(Changed, match='is at "2" now') as caught:
        change(context, run.id, {1}, notes="second")
    assert caught.value.revision == 2
    assert runs.get(context, run.id).notes == "first"
    assert runs.cancel_run(context, run.id).revision == 3
    assert change(context, run.id, {1, 3}, notes="third").notes == "third"


@ON_SQLITE
def test_new_limits_hold_at_the_next_look(context: Context, stage: Stage) -> None:
    run = stage.ask(limits={"max_restarts": 0})
    change(context, run.id, limits={"max_restarts": 1})
    fail(stage)
    assert stage.run.phase == "restarting"


@ON_SQLITE
def test_limits_of_a_run_that_does_not_go_on_are_refused(context: Context, run: RunView) -> None:
    runs.cancel_run(context, run.id)
    with pytest.raises(NotAlive, match="is being cancelled and cannot be given other limits"):
        change(context, run.id, limits={"max_restarts": 9}, notes="x")
    assert runs.get(context, run.id).notes is None
    assert change(context, run.id, notes="x").notes == "x"


def test_a_priority_taken_away_is_the_installations(context: Context, memory: MemoryCluster, stage: Stage) -> None:
    memory.shown = dataclasses.replace(Traits(), shared_folders=False)
    run = stage.ask(compute={"nodes": 1}, checkpoint={"uri": "s3://b/x"}, scheduling={"priority": "low"})

    def priority(number: int) -> str | None:
        manifest = attempts.manifest(context, run.id, number)
        found: dict[str, str] = manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
        return found.get("priorityClassName")

    assert change(context, run.id, scheduling=None).spec["scheduling"] == {}
    assert priority(1) is None
    stage.look()
    defaults = dataclasses.replace(context, defaults=parse_defaults({"scheduling": {"priority": "usual"}}))
    change(context, run.id, scheduling={"priority": "high"})
    change(defaults, run.id, scheduling={"priority": None})
    assert priority(1) is None  # its object is there
    fail(stage)
    assert (priority(1), priority(2)) == (None, "usual")


@ON_SQLITE
def test_a_run_has_64_labels_at_most(context: Context, run: RunView) -> None:
    change(context, run.id, labels={f"l{n}": "x" for n in range(64)})
    with pytest.raises(InvalidSpec, match="/labels: got 65 labels; allowed: 64"):
        change(context, run.id, labels={"one": "more"})
    change(context, run.id, labels={"l0": None, "one": "more"})


def test_a_priority_holds_from_the_next_object_on(context: Context, memory: MemoryCluster, stage: Stage) -> None:
    memory.shown = dataclasses.replace(Traits(), shared_folders=False)
    run = stage.ask(compute={"nodes": 1}, checkpoint={"uri": "s3://b/x"}, scheduling={"priority": "low"})

    def priority(number: int) -> str:
        manifest = attempts.manifest(context, run.id, number)
        pods = manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
        return str(pods["priorityClassName"])

    assert priority(1) == "low"
    assert change(context, run.id, scheduling={"priority": "middle"}).spec["scheduling"] == {"priority": "middle"}
    assert priority(1) == "middle"  # there was no object yet
    stage.look()
    change(context, run.id, scheduling={"priority": "high"})
    assert priority(1) == "middle"
    fail(stage)
    assert priority(2) == "high"
    assert priority(1) == "middle"


@ON_SQLITE
def test_a_priority_that_the_cluster_does_not_know_is_refused(context: Context, run: RunView) -> None:
    with pytest.raises(
        InvalidSpec, match="/scheduling/priority: got 'urgent'; allowed on the local cluster: low, normal"
    ):
        change(context, run.id, scheduling={"priority": "urgent"}, notes="x")
    assert runs.get(context, run.id) == run


def test_a_deleted_run_is_nowhere_until_it_is_restored(context: Context, stage: Stage) -> None:
    run = runs.create_run(context, parse_spec({"size": "tiny", "name": "mine"}), idempotency_key="k")[0]
    with pytest.raises(StillRunning, match="before you delete it"):
        changes.delete_run(context, run.id)
    runs.cancel_run(context, run.id)
    stage.reconciler.step()
    with pytest.raises(Changed):
        changes.delete_run(context, run.id, revisions={1})
    changes.delete_run(context, "mine", revisions={2})
    for call in (runs.get, runs.cancel_run, runs.retry_run, changes.delete_run, attempts.attempts):
        for name in (run.id, "mine"):
            with pytest.raises(NotFound):
                call(context, name)
    assert list_runs(context, Filter()).runs == []
    assert [one.id for one in list_runs(context, Filter(deleted=True)).runs] == [run.id]
    again, replayed = runs.create_run(context, parse_spec({"size": "tiny", "name": "mine"}), idempotency_key="k")
    assert (again.id, replayed) == (run.id, True)
    assert changes.restore_run(context, run.id).revision == 4
    assert runs.get(context, "mine").id == run.id
    with pytest.raises(NotFound, match="no deleted run"):
        changes.restore_run(context, run.id)
    assert [event.kind for event in attempts.events(context, run.id)][-2:] == ["delete", "restore"]


@ON_SQLITE
def test_a_clone_begins_anew_with_the_same_spec(context: Context) -> None:
    spec = {"size": "tiny", "name": "one", "labels": {"a": "b"}, "notes": "x", "pinned": True, "train": {"seed": 1}}
    first = runs.create_run(context, parse_spec(spec))[0]
    change(context, first.id, labels={"c": "d"})
    clone, replayed = runs.clone_run(context, "one", {"train": {"steps": 7}}, idempotency_key="k")
    assert not replayed
    assert clone.spec == {
        "size": "tiny",
        "labels": {"a": "b", "c": "d"},
        "train": {"seed": 1, "steps": 7},
        "checkpoint": {},
    }
    assert (clone.clone_of, clone.folder != first.folder, clone.notes, clone.pinned) == (first.id, True, None, False)
    assert runs.clone_run(context, "one", {"train": {"steps": 7}}, idempotency_key="k") == (clone, True)
    with pytest.raises(InvalidSpec, match="/train/steps"):
        runs.clone_run(context, "one", {"train": {"steps": -1}})


@settings(deadline=None)
@given(DOCUMENTS, DOCUMENTS)
def test_a_merge_patch_does_what_its_document_says(document: dict[str, Any], patch: dict[str, Any]) -> None:
    """RFC 7396, section 2, checked member by member; and a patch is idempotent."""
    result = merged(document, patch)
    for name in {*document, *patch}:
        if name not in patch:
            assert result[name] == document[name]
        elif patch[name] is None:
            assert name not in result
        elif not isinstance(patch[name], dict):
            assert result[name] == patch[name]
        else:
            below = document.get(name)
            assert result[name] == merged(below if isinstance(below, dict) else {}, patch[name])
    assert merged(result, patch) == result
