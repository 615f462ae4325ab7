"""What the control plane tells about itself: whether its parts work, and how much lies before it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from sqlalchemy import func, select

from controlplane.clusters.base import Capacity, Check, ClusterError, Kind
from controlplane.clusters.decisions import DECISIONS
from controlplane.clusters.watches import RESTARTS
from controlplane.domain.errors import StoreError
from controlplane.domain.phases import Phase
from controlplane.domain.storage import BadStorage, place_of
from controlplane.services.context import Context
from controlplane.services.ground import capacity_of, storage_of
from controlplane.store.leadership import holder
from controlplane.store.tables import Delivery, Outbox, Run

ROOM = 16 << 20  # bytes without which the next writes may fail
SCHEDULING = DECISIONS  # what measures them is shown as it is


@dataclass(frozen=True)
class Component:
    """A part of the control plane. Without an `essential` one no request can be served."""

    ready: bool
    detail: str
    essential: bool


def components(context: Context) -> dict[str, Component]:
    """Every part by name. An absent cluster stops no request: runs wait for it."""
    parts = {"store": _store(context), "cluster": _cluster(context)}
    parts |= {f"cluster {name}": _cluster(context.at(name)) for name in context.further}
    return parts | ({"leader": _leader(context)} if context.store.shared else {"volume": _volume(context)})


@dataclass(frozen=True)
class ClusterState:
    """A cluster as runs find it; `kind` is that of a run which says nothing else, and why."""

    name: str
    namespace: str
    ready: bool
    kind: Kind | None
    kinds: dict[str, str]
    storage: str
    capacity: Capacity
    checks: list[Check]


def clusters(context: Context) -> list[ClusterState]:
    """Every cluster, looked at now, the installation's own first."""
    return [_state(context), *(_state(context.at(name)) for name in context.further)]


def _state(context: Context) -> ClusterState:
    cluster, traits = context.cluster, context.cluster.traits()
    storage = storage_of(context)
    checks = cluster.checks(_claim(storage) or "")
    kinds: list[Kind] = sorted(traits.kinds, key=lambda kind: kind != context.kind)  # stable: the best of the others
    if not storage:
        mend = "set --storage (TERAGPT_STORAGE), or give each run a checkpoint.uri"
        checks.append(Check("storage", ok=False, detail="runs without a checkpoint.uri have no place", mend=mend))
    return ClusterState(
        name=cluster.name,
        namespace=traits.namespace,
        ready=all(check.ok for check in checks),
        kind=kinds[0] if kinds else None,
        kinds={str(kind): why for kind, why in traits.reasons.items()},
        storage=storage,
        capacity=capacity_of(context),
        checks=checks,
    )


def _claim(storage: str) -> str | None:
    try:
        return place_of(storage, shared_folders=False).claim
    except BadStorage:
        return None


def runs_by_phase(context: Context) -> dict[str, int]:
    """How many runs are in each phase; every phase is there."""
    with context.store.read() as session:
        counted = session.execute(select(Run.phase, func.count()).group_by(Run.phase)).all()
    return {str(phase): 0 for phase in Phase} | {phase: count for phase, count in counted}  # noqa: C416 - a Row is no tuple to the type checkers


def outbox_length(context: Context) -> int:
    """How many objects wait to be made or ended."""
    with context.store.read() as session:
        return session.scalar(select(func.count()).select_from(Outbox)) or 0


def outbox_age(context: Context) -> float:
    """For how many seconds the outbox's longest waiting row has been due; 0 where none is."""
    with context.store.read() as session:
        oldest = session.scalar(select(func.min(Outbox.due_at)))
    return 0.0 if oldest is None else max(0.0, context.clock() - oldest)


def notifications_by_state(context: Context) -> dict[str, int]:
    """How many notifications of the last 30 days are in each state; every state is there."""
    with context.store.read() as session:
        counted = session.execute(select(Delivery.state, func.count()).group_by(Delivery.state)).all()
    return {"waiting": 0, "delivered": 0, "given up": 0} | {state: count for state, count in counted}  # noqa: C416 - as above


def watch_restarts() -> dict[str, int]:
    """How often this process began each watch of the cluster anew."""
    return RESTARTS.counts()


def _store(context: Context) -> Component:
    try:
        context.store.ping()
    except StoreError as error:
        return Component(ready=False, detail=str(error), essential=True)
    return Component(ready=True, detail="answers", essential=True)


def _volume(context: Context) -> Component:
    """Whether there is room for what is written next. Without it all is still there to be read."""
    try:
        found = os.statvfs(context.home)
    except OSError as error:
        return Component(ready=False, detail=f"{context.home} cannot be looked at: {error.strerror}", essential=False)
    free, size = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    detail = f"{free >> 20:,} of {size >> 20:,} MiB free"
    if found.f_flag & os.ST_RDONLY:
        detail = f"{context.home} is read-only: nothing new is taken up until it can be written"
    elif free < ROOM:
        detail = f"{context.home} is full ({detail}): nothing new is taken up until there is room"
    return Component(ready=free >= ROOM and not found.f_flag & os.ST_RDONLY, detail=detail, essential=False)


def _leader(context: Context) -> Component:
    """Who reconciles, of the processes that share the store."""
    try:
        with context.store.read() as session:
            name, left = holder(session)
    except StoreError:
        return Component(ready=False, detail="not known while the store does not answer", essential=False)
    if left <= 0:
        return Component(
            ready=False,
            detail="nobody leads: runs wait until a process with --role all or reconciler does",
            essential=False,
        )
    return Component(ready=True, detail=f"{name}, for {left:.0f} s at least", essential=False)


def _cluster(context: Context) -> Component:
    try:
        there = context.cluster.capacity()
    except ClusterError as error:
        return Component(ready=False, detail=f"{context.cluster.name}: unreachable: {error}", essential=False)
    free = f"{there.free_cpus} of {there.cpus} CPUs, {there.free_gpus} of {there.gpus} GPUs free"
    detail = free if there.known else "answers; what its nodes have may not be looked at"
    return Component(ready=True, detail=f"{context.cluster.name}: {detail}", essential=False)
