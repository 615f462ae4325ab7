"""The tables, as typed rows. Times are seconds since the epoch, UTC. A change here needs a migration beside it.

The same tables serve SQLite and Postgres; the index that lists are read in is each one's own.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import BigInteger, Float, ForeignKey, Index, LargeBinary, MetaData, false, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from controlplane.store.columns import json_value, prose, words

LISTED = ("id", "deleted_at", "task_of", "phase", "size", "pinned", "created_at", "search", "cluster")
SHOWN = "task_of IS NULL AND deleted_at IS NULL"


class Base(DeclarativeBase):
    """Named constraints, so that migrations can change them on any database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {
        str: words(),
        float: Float(53),
        dict[str, Any]: json_value(),
        list[Any]: json_value(),
    }


class Installation(Base):
    """The one row that tells this installation's objects from those of another on the same cluster."""

    __tablename__ = "installation"

    id: Mapped[str] = mapped_column(primary_key=True)


class Leader(Base):
    """The one row that says which process reconciles, and until when: its `epoch` grows with every change of hands.

    Times are the database's own. The epoch is the key, so that who holds it for a write (FOR KEY SHARE) keeps the row
    from changing hands, and not the leader from renewing its lease.
    """

    __tablename__ = "leader"

    epoch: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    holder: Mapped[str]
    expires_at: Mapped[float]


class File(Base):
    """What several processes must be able to read and no table describes: logs of pods, what tasks hand back."""

    __tablename__ = "files"

    name: Mapped[str] = mapped_column(words(512), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    changed_at: Mapped[float] = mapped_column(index=True)


class Part(Base):
    """The bytes of a file from `start` on."""

    __tablename__ = "file_parts"

    name: Mapped[str] = mapped_column(ForeignKey("files.name", ondelete="CASCADE"), primary_key=True)
    start: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)


class Sweep(Base):
    """Runs that differ in their point alone: `points` are merge patches of `spec`. At most `parallelism` go at once."""

    __tablename__ = "sweeps"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(index=True)
    principal: Mapped[str]
    parallelism: Mapped[int]
    spec: Mapped[dict[str, Any]] = mapped_column(json_value())
    points: Mapped[list[Any]] = mapped_column(json_value(), deferred=True)
    created_at: Mapped[float]
    cancelled_at: Mapped[float | None]


class Queue(Base):
    """A queue that was opened or closed; `state` is one of `controlplane.domain.queues`. Any other is open."""

    __tablename__ = "queues"

    name: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    note: Mapped[str | None] = mapped_column(prose())
    changed_at: Mapped[float]
    changed_by: Mapped[str]


class Run(Base):
    """What a user asked for, and how far it is. `live_name` and `live_folder` are null once it has ended.

    `task`: what is done with the run `task_of`, for one that does not train. `suspended_at`: since when it is
    suspended, if it is; `suspended_s`: for how long it was before. `revision` grows with each change that a user makes;
    `search` is what a list is searched in; `gpus` and `cpus` are those of all nodes; `deleted_at`: since when it is
    hidden. `sweep_point`: its place among the points of the sweep that made it. `after_id`: the run that must
    succeed first. `namespace`: where its objects live, empty for the cluster's own. `cluster`: a further one, by name,
    empty for the installation's own. `measured`: what its steps took beside its plan, once its points are packed.
    """

    __tablename__ = "runs"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(index=True)
    live_name: Mapped[str | None] = mapped_column(unique=True)
    folder: Mapped[str] = mapped_column(words(4096))
    live_folder: Mapped[str | None] = mapped_column(words(4096), unique=True)
    size: Mapped[str]
    principal: Mapped[str]
    phase: Mapped[str] = mapped_column(index=True)
    desired: Mapped[str]
    reason: Mapped[str | None]
    message: Mapped[str | None] = mapped_column(prose())
    attempt: Mapped[int]
    charged_restarts: Mapped[int] = mapped_column(default=0)
    restarts_since_checkpoint: Mapped[int] = mapped_column(default=0)
    free_restarts_since_checkpoint: Mapped[int] = mapped_column(default=0)
    checkpoint_step: Mapped[int | None] = mapped_column(BigInteger)
    max_restarts: Mapped[int]
    max_runtime_s: Mapped[int | None]
    max_pending_s: Mapped[int | None]
    max_silence_s: Mapped[int | None]
    nodes: Mapped[int] = mapped_column(default=1)
    spec: Mapped[dict[str, Any]] = mapped_column(json_value(), deferred=True)
    resolved: Mapped[dict[str, Any]] = mapped_column(json_value(), deferred=True)
    spec_hash: Mapped[str]
    progress: Mapped[dict[str, Any] | None] = mapped_column(json_value())
    last_event: Mapped[int] = mapped_column(default=0)
    revision: Mapped[int] = mapped_column(default=1, server_default="1")
    labels: Mapped[dict[str, Any]] = mapped_column(json_value(), default=dict, server_default="{}")
    notes: Mapped[str | None] = mapped_column(prose())
    pinned: Mapped[bool] = mapped_column(default=False, server_default=false())
    search: Mapped[str] = mapped_column(prose(), default="", server_default="", deferred=True)
    gpus: Mapped[int] = mapped_column(default=0, server_default="0")
    cpus: Mapped[float] = mapped_column(default=0.0, server_default="0")
    retry_of: Mapped[str | None] = mapped_column(index=True)
    clone_of: Mapped[str | None] = mapped_column(index=True)
    queue: Mapped[str] = mapped_column(index=True, default="default", server_default="default")
    namespace: Mapped[str] = mapped_column(default="", server_default="")
    cluster: Mapped[str] = mapped_column(default="", server_default="")
    after_id: Mapped[str | None] = mapped_column(index=True)
    sweep_id: Mapped[str | None] = mapped_column(index=True)
    sweep_point: Mapped[int | None]
    task: Mapped[str | None]
    task_of: Mapped[str | None] = mapped_column(index=True)
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    suspended_at: Mapped[float | None]
    suspended_s: Mapped[float] = mapped_column(default=0.0)
    deleted_at: Mapped[float | None]
    measured: Mapped[dict[str, Any] | None] = mapped_column(json_value(), deferred=True)

    # SQLite's rows carry their JSON with them: what filters look at lies in an index, so that a list reads no other row
    # Postgres' hold it apart: there an index of what lists show, in their order, is the best whatever was counted
    __table_args__ = (
        Index("ix_runs_listed", *LISTED).ddl_if(dialect="sqlite"),
        Index("ix_runs_shown", "id", postgresql_where=text(SHOWN)).ddl_if(dialect="postgresql"),
    )


class Label(Base):
    """A run's label, for filters: the index holds the runs of one label in the order of a list."""

    __tablename__ = "run_labels"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    key: Mapped[str] = mapped_column(words(320), primary_key=True)
    value: Mapped[str]

    __table_args__ = (Index("ix_run_labels_key_value_run_id", "key", "value", "run_id"),)


class Attempt(Base):
    """One execution of a run. Its verdict, from `reason` to `last_lines`, is written once.

    `charged`: whether its failure counts against `max_restarts`; null where it may not be tried again at all.
    `priority`: that of its object, empty for none; None in what an older version stored, for the run's own.
    """

    __tablename__ = "attempts"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    object_name: Mapped[str] = mapped_column(unique=True)
    priority: Mapped[str | None]
    uid: Mapped[str | None]
    token_hash: Mapped[str] = mapped_column(unique=True)
    phase: Mapped[str]
    reason: Mapped[str | None]
    message: Mapped[str | None] = mapped_column(prose())
    charged: Mapped[bool | None]
    rank: Mapped[int | None]
    exit_code: Mapped[int | None]
    signal: Mapped[str | None]
    step: Mapped[int | None] = mapped_column(BigInteger)
    last_lines: Mapped[list[Any] | None] = mapped_column(json_value())
    pods: Mapped[list[Any]] = mapped_column(json_value())
    resumed_from: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[float]
    submitted_at: Mapped[float | None]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]


class Event(Base):
    """Something that happened to a run; `seq` grows by one within it."""

    __tablename__ = "events"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    time: Mapped[float]
    kind: Mapped[str]
    attempt: Mapped[int | None]
    message: Mapped[str] = mapped_column(prose())
    data: Mapped[dict[str, Any]] = mapped_column(json_value())


class Outbox(Base):
    """An object that must be made (`create`) or ended (`delete`); gone once that is done."""

    __tablename__ = "outbox"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    op: Mapped[str] = mapped_column(primary_key=True)
    object_name: Mapped[str]
    uid: Mapped[str | None]
    token: Mapped[str | None]
    due_at: Mapped[float] = mapped_column(index=True)
    lease: Mapped[str | None]
    leased_until: Mapped[float | None]
    tries: Mapped[int] = mapped_column(default=0)


class IdempotencyKey(Base):
    """A key that a client sent, what it sent with it, and the run that came of it."""

    __tablename__ = "idempotency_keys"

    principal: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body_hash: Mapped[str]
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    created_at: Mapped[float] = mapped_column(index=True)


class MetricPoint(Base):
    """One line of an attempt's metrics; `values` are its numbers by name."""

    __tablename__ = "metric_points"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger)
    time: Mapped[float]
    values: Mapped[dict[str, Any]] = mapped_column(json_value())


class MetricBlock(Base):
    """The points of an attempt from `first_seq` to `last_seq` that lie in rows no longer (`store.packed`)."""

    __tablename__ = "metric_blocks"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    first_seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    last_seq: Mapped[int] = mapped_column(BigInteger)
    points: Mapped[int]
    data: Mapped[bytes] = mapped_column(LargeBinary)


class MetricTier(Base):
    """The lowest and highest points of one value of a long curve, for drawing; made of the blocks, at any time anew."""

    __tablename__ = "metric_tiers"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)


class Notice(Base):
    """An event of which destinations are to hear; gone once there is a delivery for each that wants it."""

    __tablename__ = "notices"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)


class Delivery(Base):
    """An event that is told to one destination: `waiting` until `due_at`, `delivered`, or `given up`."""

    __tablename__ = "deliveries"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    destination: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    tries: Mapped[int]
    due_at: Mapped[float | None] = mapped_column(index=True)
    answer: Mapped[str | None] = mapped_column(prose())
    created_at: Mapped[float] = mapped_column(index=True)
    finished_at: Mapped[float | None]
