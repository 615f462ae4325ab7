"""What services hand out: plain frozen values, cut loose from the database. Times are aware and in UTC."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from controlplane.clusters.base import ObservedPod
from controlplane.store import tables


@dataclass(frozen=True)
class RunView:
    """A run. `spec` is what its user gave, `resolved` everything that it became, `folder` where its output lies.

    `labels` are those that it is found by now; `revision` grows with each change that a user makes.
    """

    id: str
    name: str
    phase: str
    desired: str
    reason: str | None
    message: str | None
    attempt: int
    size: str
    spec: dict[str, Any]
    resolved: dict[str, Any]
    progress: dict[str, Any] | None
    kubernetes: dict[str, Any]
    folder: str
    labels: dict[str, str]
    restarts: int
    checkpoint_step: int | None
    user: str
    notes: str | None
    pinned: bool
    revision: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    retry_of: str | None
    clone_of: str | None
    after: str | None
    sweep: str | None
    task: str | None
    task_of: str | None


@dataclass(frozen=True)
class PodView:
    """A pod as last seen; `rank` is the node's, `node` the machine that it was placed on."""

    name: str
    uid: str
    rank: int
    phase: str
    reason: str | None
    message: str | None
    exit_code: int | None
    node: str | None
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True)
class PodsView:
    """The pods of an attempt and of its object `name`: as the cluster shows them now, or, not `live`, as last seen."""

    attempt: int
    name: str
    live: bool
    items: list[PodView]


@dataclass(frozen=True)
class AttemptView:
    """One execution. From `reason` to `last_lines` it tells of the first failing rank.

    `phase` is the run's while it lives, then succeeded, failed or cancelled; `charged`, whether its failure counted
    against `max_restarts`. `resumed_from` is the step of the checkpoint that it started from.
    """

    attempt: int
    name: str
    uid: str | None
    phase: str
    charged: bool | None
    reason: str | None
    message: str | None
    rank: int | None
    exit_code: int | None
    signal: str | None
    step: int | None
    last_lines: list[str]
    pods: list[PodView]
    resumed_from: int | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True)
class CheckpointView:
    """A complete checkpoint: `size` in bytes, `ranks` that wrote it, None where it does not say."""

    step: int
    attempt: int | None
    time: datetime | None
    size: int | None
    ranks: int | None
    folder: str | None


@dataclass(frozen=True)
class CheckpointsView:
    """The checkpoints in a run `folder` that was looked at, or, not `seen`, the last one that its run told of."""

    folder: str
    seen: bool
    items: list[CheckpointView]


@dataclass(frozen=True)
class StacksView:
    """Stacks that were kept in a run `folder`, if that is on this machine and was looked at (`seen`)."""

    folder: str
    seen: bool
    items: list[StackFile]


@dataclass(frozen=True)
class StackFile:
    """A file of stacks of one rank or of all."""

    file: str
    time: datetime | None
    text: str


@dataclass(frozen=True)
class RemainsView:
    """What a deleted run has left, its `tasks` with it; `size` are the bytes of its folder, where that goes too.

    `removal`: the run that removes the folder, while it does.
    """

    id: str
    name: str
    tasks: list[str]
    attempts: int
    events: int
    points: int
    folder: str
    folder_removed: bool
    size: int
    removal: str | None = None


@dataclass(frozen=True)
class EventView:
    """Something that happened to a run.

    `kind` is created, phase, verdict or object, or what a user did: cancel, suspend, resume, change, delete, restore.
    """

    seq: int
    time: datetime
    kind: str
    attempt: int | None
    message: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Page:
    """A page of runs, newest first, and the cursor of the next one, if there is one."""

    runs: list[RunView]
    next_cursor: str | None


@dataclass(frozen=True)
class LogChunk:
    """Whole lines of a pod's output; `offset` is the byte to go on from, `ended` whether no more can come."""

    lines: list[str]
    offset: int
    ended: bool


@dataclass(frozen=True)
class LogMatch:
    """A line that was found: who wrote it in which attempt, its number and first byte in its node's log, its text."""

    attempt: int
    rank: int
    line: int
    offset: int
    text: str


@dataclass(frozen=True)
class LogMatches:
    """A page of what was found, the cursor of the next one, if there is one, and how many bytes were looked through."""

    matches: list[LogMatch]
    next_cursor: str | None
    looked: int


@dataclass(frozen=True)
class PointView:
    """A point of a sweep: what it sets, by JSON pointer, and how far its run is. Losses in nats a token."""

    point: int
    values: dict[str, Any]
    run: str
    name: str
    phase: str
    reason: str | None
    message: str | None
    step: int | None
    steps: int | None
    loss: float | None
    best_loss: float | None
    val_loss: float | None
    best_val_loss: float | None
    tokens_per_s: float | None


@dataclass(frozen=True)
class SweepView:
    """A sweep; `phases` counts its runs by phase, `ended` tells whether none of them goes on."""

    id: str
    name: str
    user: str
    parallelism: int
    spec: dict[str, Any]
    phases: dict[str, int]
    ended: bool
    created_at: datetime
    cancelled_at: datetime | None


@dataclass(frozen=True)
class SweepTable(SweepView):
    """A sweep with the results of all of its runs, point by point."""

    items: list[PointView]


@dataclass(frozen=True)
class SweepPage:
    """A page of sweeps, newest first, and the cursor of the next one, if there is one."""

    sweeps: list[SweepView]
    next_cursor: str | None


def moment(seconds: float | None) -> datetime | None:
    """A stored time as an aware one."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def view_run(run: tables.Run, object_name: str, cluster: str, namespace: str) -> RunView:
    """A run's row, loaded in full, as a value; `cluster` and `namespace` are for runs that have none of their own."""
    kind, where = run.resolved.get("kind", "PyTorchJob"), run.resolved.get("namespace") or namespace
    return RunView(
        id=run.id,
        name=run.name,
        phase=run.phase,
        desired=run.desired,
        reason=run.reason,
        message=run.message,
        attempt=run.attempt,
        size=run.size,
        spec=run.spec,
        resolved=run.resolved,
        progress=run.progress,
        kubernetes={"cluster": run.cluster or cluster, "namespace": where, "kind": kind, "name": object_name},
        folder=run.folder,
        labels=run.labels,
        restarts=run.charged_restarts,
        checkpoint_step=run.checkpoint_step,
        user=run.principal,
        notes=run.notes,
        pinned=run.pinned,
        revision=run.revision,
        created_at=datetime.fromtimestamp(run.created_at, UTC),
        started_at=moment(run.started_at),
        finished_at=moment(run.finished_at),
        retry_of=run.retry_of,
        clone_of=run.clone_of,
        after=run.after_id,
        sweep=run.sweep_id,
        task=run.task,
        task_of=run.task_of,
    )


def view_attempt(row: tables.Attempt) -> AttemptView:
    """An attempt's row as a value."""
    return AttemptView(
        attempt=row.number,
        name=row.object_name,
        uid=row.uid,
        phase=row.phase,
        charged=row.charged,
        reason=row.reason,
        message=row.message,
        rank=row.rank,
        exit_code=row.exit_code,
        signal=row.signal,
        step=row.step,
        last_lines=row.last_lines or [],
        pods=[_stored_pod(pod) for pod in row.pods],
        resumed_from=row.resumed_from,
        created_at=datetime.fromtimestamp(row.created_at, UTC),
        started_at=moment(row.started_at),
        finished_at=moment(row.finished_at),
    )


def view_pod(pod: ObservedPod) -> PodView:
    """A pod of the cluster as a value."""
    shown: dict[str, Any] = {name: getattr(pod, name) for name in PodView.__dataclass_fields__}
    return PodView(**shown)


def _stored_pod(pod: dict[str, Any]) -> PodView:
    shown: dict[str, Any] = {name: pod[name] for name in PodView.__dataclass_fields__}
    shown.update(started_at=moment(pod["started_at"]), finished_at=moment(pod["finished_at"]))
    return PodView(**shown)


def view_event(row: tables.Event) -> EventView:
    """An event's row as a value."""
    return EventView(row.seq, datetime.fromtimestamp(row.time, UTC), row.kind, row.attempt, row.message, row.data)
