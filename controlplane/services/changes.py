"""Changes of a run that is there: its labels, notes, limits and priority; hiding it, and showing it again.

A change that names the revision it was made from is refused where somebody else's came between.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete

from controlplane.domain.changes import MOST_LABELS, ChangedLimits, RunChanges, merged
from controlplane.domain.errors import BeingPurged, InvalidSpec, NotAlive, NotFound, Problem, StillRunning
from controlplane.domain.names import search_text
from controlplane.domain.phases import Desired, Phase
from controlplane.domain.placement import Scheduling
from controlplane.domain.resolve import unhonoured
from controlplane.domain.spec import Limits, RunSpec
from controlplane.faults import fault
from controlplane.services import removals, runs
from controlplane.services.context import Context
from controlplane.services.runs import Revisions, ensure_at
from controlplane.services.views import RunView
from controlplane.store.moves import add_event, get_attempt, get_run, priority_of
from controlplane.store.tables import Label, Run
from controlplane.store.writer import Transaction


def change_run(
    context: Context, run_id: str, changes: RunChanges, *, revisions: Revisions = None, actor: str = runs.LOCAL
) -> RunView:
    """Change what is given; a change to what is already so changes nothing.

    Limits hold from the next look on, a priority from the next object on. Raises NotFound, Changed, InvalidSpec, and
    NotAlive for limits or a priority of a run that has ended or is being cancelled.
    """
    run = runs.get(context, run_id)
    _honoured(runs.where(context, run), changes)
    run_id = run.id

    def job(transaction: Transaction) -> None:
        run = _known(transaction, run_id, revisions)
        changed = [
            *_relabelled(transaction, run, changes),
            *_annotated(run, changes),
            *_limited(run, changes),
            *_promoted(transaction, run, changes, context.defaults.scheduling.priority),
        ]
        if not changed:
            return
        run.revision += 1
        transaction.session.flush()
        data = {"actor": actor, "changed": changed, "revision": run.revision}
        add_event(transaction, run_id, "change", f"{actor} changed {', '.join(changed)}", context.clock(), data=data)
        transaction.work = True

    context.store.write(job)
    return runs.of_id(context, run_id)


def delete_run(context: Context, run_id: str, *, revisions: Revisions = None, actor: str = runs.LOCAL) -> None:
    """Hide a run that has ended: nothing of it goes. Raises NotFound, Changed and StillRunning."""
    run_id = runs.get(context, run_id).id

    def job(transaction: Transaction) -> None:
        run = _known(transaction, run_id, revisions)
        if not Phase(run.phase).terminal:
            raise StillRunning(run_id, run.phase, "delete")
        run.deleted_at = context.clock()
        run.revision += 1
        transaction.session.flush()
        add_event(transaction, run_id, "delete", f"{actor} deleted it", context.clock(), data={"actor": actor})
        fault("run hidden")

    context.store.write(job)


def restore_run(context: Context, run_id: str, *, actor: str = runs.LOCAL) -> RunView:
    """Show a hidden run again. Raises NotFound for one that is not hidden, and BeingPurged once its folder goes."""

    def job(transaction: Transaction) -> None:
        run = get_run(transaction, run_id)
        if run.deleted_at is None:
            raise NotFound("deleted run", run_id)
        if removals.begun(transaction.session, run_id):
            raise BeingPurged(run_id)
        run.deleted_at = None
        run.revision += 1
        transaction.session.flush()
        add_event(transaction, run_id, "restore", f"{actor} restored it", context.clock(), data={"actor": actor})

    context.store.write(job)
    return runs.of_id(context, run_id)


def _known(transaction: Transaction, run_id: str, revisions: Revisions) -> Run:
    run = get_run(transaction, run_id)
    if run.deleted_at is not None:
        raise NotFound("run", run_id)
    ensure_at(run, revisions)
    return run


def _honoured(context: Context, changes: RunChanges) -> None:
    """Raises InvalidSpec for what this cluster has nothing for."""
    if changes.scheduling is None or not context.cluster.traits().shared_folders:
        return
    asked = RunSpec(size="tiny", scheduling=Scheduling(priority=changes.scheduling.priority))
    if problems := list(unhonoured(asked)):
        raise InvalidSpec(problems)


def _relabelled(transaction: Transaction, run: Run, changes: RunChanges) -> list[str]:
    joined = {} if changes.labels is None else {**run.labels, **changes.labels}
    labels = {key: value for key, value in joined.items() if value is not None}
    if labels == run.labels:
        return []
    if len(labels) > MOST_LABELS:
        raise InvalidSpec([Problem("/labels", "too_long", f"got {len(labels)} labels; allowed: {MOST_LABELS}")])
    session = transaction.session
    session.execute(delete(Label).where(Label.run_id == run.id))
    session.add_all(Label(run_id=run.id, key=key, value=value) for key, value in labels.items())
    run.labels, run.search, run.spec = labels, search_text(run.name, labels), {**run.spec, "labels": labels}
    return ["labels"]


def _annotated(run: Run, changes: RunChanges) -> list[str]:
    given = sorted({"notes", "pinned"} & changes.model_fields_set)
    asked: dict[str, Any] = {name: getattr(changes, name) for name in given}
    asked |= {"pinned": bool(changes.pinned)} if "pinned" in given else {}
    changed = {name: value for name, value in asked.items() if value != getattr(run, name)}
    for name, value in changed.items():
        setattr(run, name, value)
    run.spec = {**run.spec, **changed} if changed else run.spec
    return list(changed)


def _limited(run: Run, changes: RunChanges) -> list[str]:
    defaults = Limits()
    asked = ChangedLimits.model_fields if changes.limits is None else changes.limits.model_fields_set
    given: dict[str, Any] = {name: getattr(changes.limits, name, None) for name in sorted(asked)}
    wanted = {name: getattr(defaults, name) if value is None else value for name, value in given.items()}
    changed = {name: value for name, value in wanted.items() if value != getattr(run, name)}
    if not changed:
        return []
    _ensure_alive(run, "given other limits")
    for name, value in changed.items():
        setattr(run, name, value)
    run.spec = {**run.spec, "limits": {**run.spec.get("limits", {}), **changed}}
    return [f"limits.{name}" for name in changed]


def _promoted(transaction: Transaction, run: Run, changes: RunChanges, otherwise: str | None) -> list[str]:
    """An object that is not begun yet gets the new priority; one that is keeps its own. `otherwise`: for none."""
    scheduling = run.spec.get("scheduling", {})
    wanted = changes.scheduling.priority if changes.scheduling else None
    if "scheduling" not in changes.model_fields_set or wanted == scheduling.get("priority"):
        return []
    _ensure_alive(run, "given another priority")
    run.spec = {**run.spec, "scheduling": merged(scheduling, {"priority": wanted})}
    resolved = merged(run.resolved.get("scheduling") or {}, {"priority": wanted or otherwise})
    run.resolved = {**run.resolved, "scheduling": resolved}
    if run.phase in {Phase.QUEUED, Phase.RESTARTING}:
        get_attempt(transaction, run.id, run.attempt).priority = priority_of(run.spec, run.resolved)
    return ["scheduling.priority"]


def _ensure_alive(run: Run, verb: str) -> None:
    ended = Phase(run.phase).terminal
    if ended or run.desired == Desired.CANCELLED:
        raise NotAlive(run.id, run.phase if ended else "being cancelled", verb)
