"""A run about to be stored, and how it is: whole, or not at all. Many may be stored in one transaction.

Statements are made of values, since the mapper would take most of the time that a `POST /runs` costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import CompoundSelect, Connection, Select, bindparam, delete, func, or_, select, union_all
from sqlalchemy.orm import Session

from controlplane.domain.errors import FolderInUse, KeyReused, NameInUse
from controlplane.domain.names import object_name, search_text
from controlplane.domain.phases import Desired, Phase
from controlplane.domain.preparations import PreparationSpec
from controlplane.domain.queues import DEFAULT_QUEUE
from controlplane.domain.resolve import ResolvedRun, spec_hash
from controlplane.domain.spec import RunSpec
from controlplane.faults import fault
from controlplane.runfolder import last_claim
from controlplane.store.moves import FIRST_EVENT, NewAttempt, add_attempts, add_first_events, priority_of
from controlplane.store.rows import add_rows, given, several
from controlplane.store.tables import IdempotencyKey, Label, Run
from controlplane.store.writer import Transaction

KEYS_LIVE_S = 7 * 86_400
OUTLIVED = delete(IdempotencyKey).where(IdempotencyKey.created_at < bindparam("before"))
Answer = tuple[str, dict[str, Any] | None]


@lru_cache
def _of_keys(count: int) -> CompoundSelect[str, str, str, str]:
    """The keys of so many pairs of asker and key, each looked up by itself: one asker may have very many."""
    key = IdempotencyKey
    wanted = select(key.principal, key.key, key.run_id, key.body_hash)
    pairs = zip(several("principal", count, str), several("key", count, str), strict=True)
    return union_all(*(wanted.where(key.principal == principal, key.key == name) for principal, name in pairs))


@lru_cache
def _holders(count: int) -> Select[str, str | None, str | None]:
    """The live runs that have one of so many names or folders; a task's "" is nobody's."""
    name, folder = Run.live_name.in_(several("name", count, str)), Run.live_folder.in_(several("folder", count, str))
    return select(Run.id, Run.live_name, Run.live_folder).where(or_(name, folder))


@dataclass(frozen=True)
class Request:
    """A run about to be stored; `task` says what it does, mostly with the run `task_of`, where it does not train.

    `sweep`: the sweep that makes it, and its point there. `after`: the run that must succeed first. `waits`: why it is
    not begun at once, as reason and message.
    """

    id: str
    name: str
    spec: RunSpec | PreparationSpec
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
    def size(self) -> str:
        """The named size; empty for a preparation."""
        return self.spec.size if isinstance(self.spec, RunSpec) else ""

    @property
    def folder(self) -> str:
        """Where its checkpoints go, or its dataset; empty for a task of another run."""
        return self.resolved.folder


def insert(transaction: Transaction, requests: Sequence[tuple[Request, float]]) -> list[Answer | Exception]:
    """Transition 0 of each, asked for at its moment: run, first attempt, outbox row, key and first event, or nothing.

    Gives each its id and what was stored, None where its key had made it before; or why it was refused: KeyReused,
    NameInUse or FolderInUse. The first of two that ask for the same gets it.
    """
    session, connection = transaction.session, transaction.session.connection()
    answers: list[Answer | Exception] = []
    stored: list[tuple[Request, dict[str, Any]]] = []
    taken = _Taken(session, [request for request, _ in requests])
    for request, now in requests:
        try:
            if made := taken.made(request):
                answers.append((made, None))
                continue
            taken.take(request)
        except (KeyReused, NameInUse, FolderInUse) as refused:
            answers.append(refused)
            continue
        values = _values(request, now, attempt=1 + _claimed(session, request))
        stored.append((request, values))
        answers.append((request.id, values))
    if stored:
        add_rows(connection, Run.__table__, [values for _, values in stored])
        _add_labels(connection, [values for _, values in stored])
        _add_keys(connection, stored)
        add_attempts(transaction, [_attempt(request, values) for request, values in stored])
        add_first_events(transaction, [_event(request, values) for request, values in stored])
    fault("run inserted")
    return answers


class _Taken:
    """What live runs and keys stand in the way of requests, and of each other."""

    def __init__(self, session: Session, requests: Sequence[Request]) -> None:
        connection = session.connection()
        keys = [(request.principal, request.key) for request in requests if request.key is not None]
        self._keys: dict[tuple[str, str], tuple[str, str]] = {}
        if keys:
            principals, names = zip(*keys, strict=True)
            count, values = given(principal=principals, key=names)
            found = connection.execute(_of_keys(count), values)
            self._keys = {(one.principal, one.key): (one.run_id, one.body_hash) for one in found}
        count, values = given(name=[one.name for one in requests], folder=[one.folder for one in requests])
        holders = connection.execute(_holders(count), values).all()
        self._names = {one.live_name: one.id for one in holders}
        self._folders = {one.live_folder: one.id for one in holders if one.live_folder}

    def made(self, request: Request) -> str | None:
        """The run that the request's key made before. Raises KeyReused."""
        return _same(self._keys.get((request.principal, request.key or "")), request.key, request.body_hash)

    def take(self, request: Request) -> None:
        """Let it have its name, folder and key. Raises NameInUse and FolderInUse where a live run has them."""
        if holder := self._names.get(request.name):
            raise NameInUse(request.name, holder)
        if holder := self._folders.get(request.folder):
            raise FolderInUse(request.folder, holder)
        self._names[request.name] = request.id
        if request.folder:
            self._folders[request.folder] = request.id
        if request.key is not None:
            self._keys[request.principal, request.key] = (request.id, request.body_hash)


def _add_labels(connection: Connection, runs: Sequence[dict[str, Any]]) -> None:
    labels = [{"run_id": run["id"], "key": key, "value": value} for run in runs for key, value in run["labels"].items()]
    if labels:
        add_rows(connection, Label.__table__, labels)


def _add_keys(connection: Connection, stored: Sequence[tuple[Request, dict[str, Any]]]) -> None:
    """The keys of runs; those that are too old go."""
    keys: list[dict[str, Any]] = [
        {"principal": one.principal, "key": one.key, "body_hash": one.body_hash, "run_id": one.id, "created_at": moment}
        for one, values in stored
        if one.key is not None
        for moment in [values["created_at"]]
    ]
    if keys:
        connection.execute(OUTLIVED, {"before": keys[-1]["created_at"] - KEYS_LIVE_S})
        add_rows(connection, IdempotencyKey.__table__, keys)


def _attempt(request: Request, run: Mapping[str, Any]) -> NewAttempt:
    now = run["created_at"]
    name, priority = object_name(request.name, request.id, run["attempt"]), priority_of(run["spec"], run["resolved"])
    return NewAttempt(request.id, run["attempt"], name, priority, now, now, request.resumed_from)


def _event(request: Request, run: Mapping[str, Any]) -> dict[str, Any]:
    data = {"phase": str(Phase.QUEUED), "actor": request.principal}
    told = {"time": run["created_at"], "message": _told(request), "data": data}
    return {"run_id": request.id, "attempt": run["attempt"], **told}


def _told(request: Request) -> str:
    """How a run came to be, in words."""
    if request.retry_of:
        return f"retry of {request.retry_of}"
    if request.clone_of:
        return f"clone of {request.clone_of}"
    if request.sweep:
        return f"point {request.sweep[1]} of {request.sweep[0]}"
    if isinstance(request.spec, PreparationSpec):
        return f"{request.principal} asked for the dataset {request.folder}"
    if request.task:
        return f"{request.principal} asked for a {request.task} of {request.task_of}"
    return f"{request.principal} asked for a {request.size} run"


def _claimed(session: Session, request: Request) -> int:
    """The highest attempt that has had the run's folder, as its owner files and our own rows say; 0 for a new one."""
    if isinstance(request.spec, PreparationSpec) or request.spec.checkpoint.uri is None:
        return 0
    ours = session.scalar(select(func.max(Run.attempt)).where(Run.folder == request.folder)) or 0
    return max(ours, last_claim(Path(request.folder)))


def _values(request: Request, now: float, attempt: int) -> dict[str, Any]:
    limits, layout, labels = request.spec.limits, request.resolved.layout, request.resolved.labels
    resolved = request.resolved.to_json()
    return {
        "id": request.id,
        "name": request.name,
        "live_name": request.name,
        "folder": request.folder,
        "live_folder": request.folder or None,
        "size": request.size,
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
        "resolved": resolved,
        "spec_hash": spec_hash(resolved),
        "suspended_s": 0.0,
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
    found = session.connection().execute(_of_keys(1), {"principal0": principal, "key0": key}).one_or_none()
    return _same((found.run_id, found.body_hash) if found else None, key, body_hash)


def _same(made: tuple[str, str] | None, key: str | None, body_hash: str) -> str | None:
    """The run of a key that is known with what came with it. Raises KeyReused where that was something else."""
    if made is None:
        return None
    run_id, before = made
    if before != body_hash:
        raise KeyReused(str(key), run_id)
    return run_id
