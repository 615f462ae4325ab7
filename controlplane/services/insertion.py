"""A run about to be stored, and how it is: whole, or not at all. Many may be stored in one transaction.

Statements are made of values, since the mapper would take most of the time that a `POST /runs` costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import bindparam, delete, func, or_, select
from sqlalchemy import insert as inserted
from sqlalchemy.orm import Session

from controlplane.domain.errors import FolderInUse, KeyReused, NameInUse
from controlplane.domain.names import search_text
from controlplane.domain.phases import Desired, Phase
from controlplane.domain.queues import DEFAULT_QUEUE
from controlplane.domain.resolve import ResolvedRun
from controlplane.domain.spec import RunSpec
from controlplane.faults import fault
from controlplane.runfolder import last_claim
from controlplane.store.moves import FIRST_EVENT, add_attempt, add_first_event
from controlplane.store.tables import IdempotencyKey, Label, Run
from controlplane.store.writer import Transaction

KEYS_LIVE_S = 7 * 86_400
OF_KEY = select(IdempotencyKey.run_id, IdempotencyKey.body_hash).where(
    IdempotencyKey.principal == bindparam("principal"), IdempotencyKey.key == bindparam("key")
)
HOLDERS = select(Run.id, Run.live_name).where(
    or_(Run.live_name == bindparam("name"), Run.live_folder == bindparam("folder"))
)


@dataclass(frozen=True)
class Request:
    """A run about to be stored; `task` says what it does with the run `task_of`, where it does not train.

    `sweep`: the sweep that makes it, and its point there. `after`: the run that must succeed first. `waits`: why it is
    not begun at once, as reason and message.
    """

    id: str
    name: str
    spec: RunSpec
    resolved: ResolvedRun
    principal: str
    key: str | None
    body_hash: str
    retry_of: str | None = None
    clone_of: str | None = None
    resumed_from: int | None = None
    task: str | None = None
    task_of: str | None = None
    sweep: tuple[str, int] | None = None
    waits: tuple[str | None, str | None] = (None, None)
    after: str | None = None
    queue: str = DEFAULT_QUEUE

    @property
    def folder(self) -> str:
        """Where its checkpoints go; empty for a task, which writes none."""
        return self.resolved.folder


def insert(transaction: Transaction, request: Request, now: float) -> tuple[str, Run | None]:
    """Transition 0: the run, its first attempt, its outbox row, its key and its first event, or nothing at all.

    Returns its id and what was stored, None where its key had made it before. No object is left in the session: many
    runs may be stored at once. Raises KeyReused, NameInUse and FolderInUse.
    """
    session, connection = transaction.session, transaction.session.connection()
    if made := run_of_key(session, request.principal, request.key, request.body_hash):
        return made, None
    _ensure_free(session, request)
    values = _values(request, now, attempt=1 + _claimed(session, request))
    run = Run(**values)
    connection.execute(inserted(Run), values)
    if run.labels:
        connection.execute(
            inserted(Label), [{"run_id": run.id, "key": key, "value": value} for key, value in run.labels.items()]
        )
    if request.key is not None:
        connection.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < now - KEYS_LIVE_S))
        key = {"principal": request.principal, "key": request.key, "body_hash": request.body_hash}
        connection.execute(inserted(IdempotencyKey), {**key, "run_id": run.id, "created_at": now})
    add_attempt(transaction, run, run.attempt, now, due_at=now, resumed_from=request.resumed_from)
    data = {"phase": str(Phase.QUEUED), "actor": request.principal}
    add_first_event(transaction, run, _told(request), now, data=data)
    fault("run inserted")
    return run.id, run


def _ensure_free(session: Session, request: Request) -> None:
    """Raises NameInUse and FolderInUse where a live run has what this one asks for."""
    asked = {"name": request.name, "folder": request.folder}  # a task's "" is nobody's
    for holder, name in session.connection().execute(HOLDERS, asked):
        if name == request.name:
            raise NameInUse(request.name, holder)
        raise FolderInUse(request.folder, holder)


def _told(request: Request) -> str:
    """How a run came to be, in words."""
    if request.retry_of:
        return f"retry of {request.retry_of}"
    if request.clone_of:
        return f"clone of {request.clone_of}"
    if request.sweep:
        return f"point {request.sweep[1]} of {request.sweep[0]}"
    if request.task:
        return f"{request.principal} asked for a {request.task} of {request.task_of}"
    return f"{request.principal} asked for a {request.spec.size} run"


def _claimed(session: Session, request: Request) -> int:
    """The highest attempt that has had the run's folder, as its owner files and our own rows say; 0 for a new one."""
    if request.spec.checkpoint.uri is None:
        return 0
    ours = session.scalar(select(func.max(Run.attempt)).where(Run.folder == request.folder)) or 0
    return max(ours, last_claim(Path(request.folder)))


def _values(request: Request, now: float, attempt: int) -> dict[str, Any]:
    limits, layout, labels = request.spec.limits, request.resolved.layout, request.resolved.labels
    return {
        "id": request.id,
        "name": request.name,
        "live_name": request.name,
        "folder": request.folder,
        "live_folder": request.folder or None,
        "size": request.spec.size,
        "principal": request.principal,
        "phase": Phase.QUEUED,
        "desired": Desired.RUNNING,
        "reason": request.waits[0],
        "message": request.waits[1],
        "attempt": attempt,
        "namespace": request.resolved.namespace,
        "cluster": request.resolved.cluster,
        "charged_restarts": 0,
        "restarts_since_checkpoint": 0,
        "free_restarts_since_checkpoint": 0,
        "max_restarts": limits.max_restarts,
        "max_runtime_s": limits.max_runtime_s,
        "max_pending_s": limits.max_pending_s,
        "max_silence_s": limits.max_silence_s,
        "nodes": layout.nodes,
        "gpus": layout.nodes * layout.gpus_per_node,
        "cpus": layout.nodes * layout.cpus_per_node,
        "revision": 1,
        "labels": labels,
        "notes": request.spec.notes,
        "pinned": request.spec.pinned,
        "search": search_text(request.name, labels),
        "spec": request.spec.model_dump(mode="json", exclude_unset=True),
        "resolved": request.resolved.to_json(),
        "spec_hash": request.resolved.spec_hash,
        "last_event": FIRST_EVENT,
        "retry_of": request.retry_of,
        "clone_of": request.clone_of,
        "queue": request.queue,
        "after_id": request.after,
        "sweep_id": request.sweep[0] if request.sweep else None,
        "sweep_point": request.sweep[1] if request.sweep else None,
        "task": request.task,
        "task_of": request.task_of,
        "created_at": round(now, 6),  # as it is shown, so that a list from that moment on begins with it
    }


def run_of_key(session: Session, principal: str, key: str | None, body_hash: str) -> str | None:
    """The run that an earlier request with this key made. Raises KeyReused where that had another body."""
    if key is None:
        return None
    row = session.connection().execute(OF_KEY, {"principal": principal, "key": key}).one_or_none()
    if row is None:
        return None
    if row.body_hash != body_hash:
        raise KeyReused(key, row.run_id)
    return str(row.run_id)
