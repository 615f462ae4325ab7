"""Runs: asked for, looked at, cancelled, tried again, cloned. These write `desired` and never `phase`."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from sqlalchemy import Select, bindparam, select
from sqlalchemy.orm import undefer

from controlplane.domain.chains import AFTER, WAITS_FOR_RUN, cannot_follow, does_not_fit, waits_for_run
from controlplane.domain.changes import merged
from controlplane.domain.errors import Changed, InvalidSpec, NotAlive, NotFound, NotTraining, Problem, StillRunning
from controlplane.domain.names import RUN_ID, default_name, fingerprint, new_run_id, object_name
from controlplane.domain.phases import Desired, Phase
from controlplane.domain.preparations import PREPARE, PreparationSpec
from controlplane.domain.queues import DEFAULT_QUEUE
from controlplane.domain.resolve import ANEW, ResolvedRun, Start
from controlplane.domain.spec import RunSpec, parse_spec, short
from controlplane.faults import fault
from controlplane.runfolder import last_checkpoint
from controlplane.services.context import Context
from controlplane.services.ground import fitting, remembered
from controlplane.services.insertion import Answer, Request, insert, run_of_key
from controlplane.services.views import RunView, view_run
from controlplane.store.moves import add_event, get_run
from controlplane.store.tables import Attempt, Run
from controlplane.store.writer import Transaction
from controlplane.tracing import span

LOCAL = "local"  # the principal where nobody has to say who they are
Revisions = Collection[int] | None  # those that a change may be made from; None: any
EMPTY = dict.fromkeys(Run.__table__.columns.keys())
OWN = ("name", "notes", "pinned")  # what a clone does not take over, beside the place of its checkpoints


def create_run(
    context: Context, spec: RunSpec, *, idempotency_key: str | None = None, principal: str = LOCAL
) -> tuple[RunView, bool]:
    """Store a run, to be submitted at once; returns it, and whether an earlier request with the key made it.

    Raises InvalidSpec, NameInUse, FolderInUse, and KeyReused for a key that came with another body.
    """
    body_hash = fingerprint(spec.model_dump(mode="json", exclude_unset=True))
    if made := made_before(context, principal, idempotency_key, body_hash):
        return made, True
    return store_run(context, request_of(context, spec, Asker(principal, idempotency_key, body_hash)))


async def create_soon(
    context: Context, spec: RunSpec, *, idempotency_key: str | None = None, principal: str = LOCAL
) -> tuple[RunView, bool]:
    """As `create_run`, in the event loop where only the store's writer has to be waited for, else in a thread."""
    asker = Asker(principal, idempotency_key, fingerprint(spec.model_dump(mode="json", exclude_unset=True)))
    request = _at_hand(context, spec, asker)
    if request is None:
        again = partial(create_run, context, spec, idempotency_key=idempotency_key, principal=principal)
        return await asyncio.to_thread(again)
    with span("store write"):
        run_id, values = await asyncio.wrap_future(_asked_for(context, request))
    if values is None:
        return await asyncio.to_thread(of_id, context, run_id), True
    return _stored(context, values), False


def retry_run(
    context: Context, run_id: str, *, idempotency_key: str | None = None, principal: str = LOCAL
) -> tuple[RunView, bool]:
    """A new run with the spec of one that has ended, from its last checkpoint; as `create_run` otherwise.

    A preparation is begun again, and goes on from what is done. Raises NotFound, StillRunning for a run that has not
    ended, and NotTraining for a task.
    """
    body_hash = fingerprint({"retry_of": run_id})
    if made := made_before(context, principal, idempotency_key, body_hash):
        return made, True
    old = get(context, run_id)
    if not Phase(old.phase).terminal:
        raise StillRunning(old.id, old.phase, "retry")
    asker = Asker(principal, idempotency_key, body_hash)
    if old.task:
        return store_run(context, _prepared_again(context, old, asker))
    return store_run(context, request_of(context, RunSpec.model_validate(old.spec), asker, retried=old))


def clone_run(
    context: Context,
    run_id: str,
    overrides: dict[str, Any],
    *,
    idempotency_key: str | None = None,
    principal: str = LOCAL,
) -> tuple[RunView, bool]:
    """A new run with the spec of another, changed by `overrides` (RFC 7396), from the start; as `create_run` otherwise.

    Name, notes and the place of checkpoints are not taken over. Raises NotFound, and NotTraining for a task.
    """
    body_hash = fingerprint({"clone_of": run_id, "overrides": overrides})
    if made := made_before(context, principal, idempotency_key, body_hash):
        return made, True
    old = get(context, run_id)
    if old.task:
        raise NotTraining(old.id, old.task, old.task_of)
    base = {name: value for name, value in old.spec.items() if name not in OWN}
    spec = parse_spec(merged(merged(base, {"checkpoint": {"uri": None}}), overrides))
    request = request_of(context, spec, Asker(principal, idempotency_key, body_hash))
    return store_run(context, replace(request, clone_of=old.id))


def get(context: Context, run_id: str) -> RunView:
    """The run with this id, or of this name: the live one, else the newest. Raises NotFound, also for a hidden one."""
    return view_of(context, _seen(by_id=bool(RUN_ID.fullmatch(run_id))), run_id)


def ensure_at(run: Run, revisions: Revisions) -> None:
    """Raises Changed for a run that is at none of the revisions that a change may be made from."""
    if revisions is not None and run.revision not in revisions:
        raise Changed(run.id, run.revision)


def cancel_run(context: Context, run_id: str, *, revisions: Revisions = None, actor: str = LOCAL) -> RunView:
    """Want the run's end; a run that has ended, or is being cancelled, stays as it is. Raises NotFound and Changed."""
    run_id = get(context, run_id).id

    def job(transaction: Transaction) -> None:
        run = get_run(transaction, run_id)
        ensure_at(run, revisions)
        if Phase(run.phase).terminal or run.desired == Desired.CANCELLED:
            return
        run.desired, run.revision = Desired.CANCELLED, run.revision + 1
        transaction.session.flush()
        data = {"actor": actor}
        add_event(transaction, run_id, "cancel", "a cancel was asked for", context.clock(), data=data)
        transaction.work = True
        fault("cancel wanted")

    context.store.write(job)
    fault("cancel stored")
    return get(context, run_id)


def suspend_run(context: Context, run_id: str, *, revisions: Revisions = None, actor: str = LOCAL) -> RunView:
    """Want the run to stop for now, with a checkpoint, and to give back what it holds.

    Raises NotFound, Changed and NotAlive.
    """
    return _want(context, run_id, Desired.SUSPENDED, "suspended", revisions, actor)


def resume_run(context: Context, run_id: str, *, revisions: Revisions = None, actor: str = LOCAL) -> RunView:
    """Want a suspended run to go on from its last checkpoint. Raises NotFound, Changed and NotAlive."""
    return _want(context, run_id, Desired.RUNNING, "resumed", revisions, actor)


def _want(context: Context, run_id: str, desired: Desired, verb: str, revisions: Revisions, actor: str) -> RunView:
    run_id = get(context, run_id).id

    def job(transaction: Transaction) -> None:
        run = get_run(transaction, run_id)
        ensure_at(run, revisions)
        if Phase(run.phase).terminal or run.desired == Desired.CANCELLED:
            raise NotAlive(run_id, run.phase if Phase(run.phase).terminal else "being cancelled", verb)
        if run.desired != desired:
            run.desired, run.revision = desired, run.revision + 1
            transaction.session.flush()
            kind = "suspend" if desired == Desired.SUSPENDED else "resume"
            data = {"actor": actor}
            add_event(transaction, run_id, kind, f"a {kind} was asked for", context.clock(), data=data)
            transaction.work = True

    context.store.write(job)
    fault("wish stored")
    return get(context, run_id)


@dataclass(frozen=True)
class Asker:
    """Who asks for a run, under which key, and the hash of what came with it."""

    principal: str
    key: str | None
    body_hash: str


def request_of(context: Context, spec: RunSpec, asker: Asker, retried: RunView | None = None) -> Request:
    """Everything of the new run that can be known before it is stored. Raises InvalidSpec."""
    run_id, start = new_run_id(), Start.of(retried.resolved, _start_from(retried)) if retried else ANEW
    own = retried is not None and start.folder == retried.folder
    before = None if own else upstream(context, spec)
    resolved = fitting(context, spec, run_id, start_of(before) if before else start)
    if before:
        spec = spec.model_copy(update={"after": before.id})
        if problems := list(does_not_fit(resolved, before.resolved)):
            raise InvalidSpec(problems)
    name = spec.name or default_name(spec.size, run_id)
    goes_on = before is not None and before.phase != Phase.SUCCEEDED
    if retried and own:
        step = last_step(retried)
    elif goes_on:
        step = None  # as far as the other one will have come
    else:
        folders = (resolved.config["out"], resolved.config["start_from"])
        found = (last_checkpoint(Path(folder)) for folder in folders if folder)
        step = next((step for step in found if step is not None), None)
    return Request(
        id=run_id,
        name=name,
        spec=spec,
        resolved=resolved,
        principal=asker.principal,
        key=asker.key,
        body_hash=asker.body_hash,
        retry_of=retried.id if retried else None,
        resumed_from=step,
        after=before.id if before else None,
        queue=queue_of(context, resolved),
        waits=(WAITS_FOR_RUN, waits_for_run(before.name, before.id)) if before and goes_on else (None, None),
    )


def _prepared_again(context: Context, old: RunView, asker: Asker) -> Request:
    """The same preparation as another run. Raises NotTraining for a task of a run."""
    if old.task_of:
        raise NotTraining(old.id, str(old.task), old.task_of)
    spec, resolved = PreparationSpec.model_validate(old.spec), ResolvedRun.from_json(old.resolved)
    return prepared(context, spec, resolved, new_run_id(), asker, retry_of=old.id)


def prepared(
    context: Context,
    spec: PreparationSpec,
    resolved: ResolvedRun,
    run_id: str,
    asker: Asker,
    *,
    retry_of: str | None = None,
) -> Request:
    """The run that prepares a dataset, about to be stored."""
    return Request(
        id=run_id,
        name=spec.name or default_name(PREPARE, run_id),
        spec=spec,
        resolved=resolved,
        principal=asker.principal,
        key=asker.key,
        body_hash=asker.body_hash,
        retry_of=retry_of,
        queue=queue_of(context, resolved),
        task=PREPARE,
    )


def _at_hand(context: Context, spec: RunSpec, asker: Asker) -> Request | None:
    """As `request_of`, where neither a folder nor the store nor the cluster has to be asked; None elsewhere."""
    elsewhere = spec.after or spec.checkpoint.uri or "start_from" in spec.train
    run_id = new_run_id()
    resolved = None if elsewhere or not context.store.opened else remembered(context, spec, run_id)
    if resolved is None:
        return None
    return Request(
        id=run_id,
        name=spec.name or default_name(spec.size, run_id),
        spec=spec,
        resolved=resolved,
        principal=asker.principal,
        key=asker.key,
        body_hash=asker.body_hash,
        queue=queue_of(context, resolved),
    )


def queue_of(context: Context, run: ResolvedRun) -> str:
    """The queue that a run waits in."""
    return run.scheduling.queue or context.queue or DEFAULT_QUEUE


def upstream(context: Context, spec: RunSpec) -> RunView | None:
    """The run that one with this spec is to come after, if it is. Raises InvalidSpec."""
    if spec.after is None:
        return None
    try:
        found = get(context, spec.after)
    except NotFound:
        detail = f"got {short(spec.after)}; allowed: the id or name of a run that is there"
        raise InvalidSpec([Problem(AFTER, "no_such_run", detail)]) from None
    if problems := list(cannot_follow(spec, found.name, found.phase, found.task)):
        raise InvalidSpec(problems)
    return found


def start_of(before: RunView | None) -> Start:
    """What a run that comes after another begins from."""
    return Start.of(before.resolved, before.folder) if before else ANEW


def _start_from(retried: RunView) -> str:
    """The folder whose checkpoint a retry goes on from: the old run's, or what that one itself had started from."""
    if last_step(retried) is not None:
        return retried.folder
    return str(retried.resolved["config"].get("start_from", ""))


def last_step(run: RunView) -> int | None:
    """The step of the run's last checkpoint: its folder's, or what its trainer told where that is not to be seen."""
    folder = Path(run.folder)
    return last_checkpoint(folder) if folder.is_absolute() else run.checkpoint_step


def store_run(context: Context, request: Request) -> tuple[RunView, bool]:
    """Store it, to be submitted at once; and whether its key had made it before. Raises NameInUse, FolderInUse."""
    with span("store write"):
        run_id, values = _asked_for(context, request).result()
    if values is None:
        return of_id(context, run_id), True
    return _stored(context, values), False


def _asked_for(context: Context, request: Request) -> Future[Answer]:
    """What is to come of the request, once the store's writer has come to it."""
    fault("run resolved")
    return context.store.together(insert, (request, context.clock()))


def _stored(context: Context, values: dict[str, Any]) -> RunView:
    """The new run with these columns."""
    fault("run stored")
    run = cast("Run", SimpleNamespace(**{**EMPTY, **values}))  # as its row, which the mapper takes long to make
    named = object_name(run.name, run.id, run.attempt)
    return view_run(run, named, context.cluster.name, context.cluster.traits().namespace)


def made_before(context: Context, principal: str, key: str | None, body_hash: str) -> RunView | None:
    """The run that an earlier request with this key made. Raises KeyReused."""
    with context.store.read() as session:
        run_id = run_of_key(session, principal, key, body_hash)
    return of_id(context, run_id) if run_id else None


def of_id(context: Context, run_id: str) -> RunView:
    """The run with this id, also where it is hidden. Raises NotFound."""
    return view_of(context, _by_id(), run_id)


def view_of(context: Context, wanted: Select[Run, str], run_id: str) -> RunView:
    """The one run of a selection, which its caller calls `run_id`, as its parameter `run`. Raises NotFound."""
    with context.store.read() as session:
        found = session.execute(wanted, {"run": run_id}).one_or_none()
        if found is None:
            raise NotFound("run", run_id)
        return view_run(found[0], found[1], context.cluster.name, context.cluster.traits().namespace)


@cache
def _by_id() -> Select[Run, str]:
    """The run with the id `run`: made once, since making it would take longer than running it."""
    return whole().where(Run.id == bindparam("run"))


@cache
def _seen(*, by_id: bool) -> Select[Run, str]:
    """The run with the id, or of the name, `run` that is not hidden."""
    named = whole().where(Run.name == bindparam("run")).order_by(Run.live_name.is_(None), Run.id.desc()).limit(1)
    return (_by_id() if by_id else named).where(Run.deleted_at.is_(None))


def where(context: Context, run: RunView) -> Context:
    """What holds on the run's own cluster."""
    return context.at(run.kubernetes["cluster"])


def whole() -> Select[Run, str]:
    """Runs in full, each with its latest object's name."""
    return (
        select(Run, Attempt.object_name)
        .join(Attempt, (Attempt.run_id == Run.id) & (Attempt.number == Run.attempt))
        .options(undefer(Run.spec), undefer(Run.resolved))
    )
