"""Runs, attempts, events, outbox, idempotency keys and metric points."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from controlplane.store.columns import json_value, prose, words

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("id", words(), nullable=False),
        sa.Column("name", words(), nullable=False),
        sa.Column("live_name", words(), nullable=True),
        sa.Column("folder", words(4096), nullable=False),
        sa.Column("live_folder", words(4096), nullable=True),
        sa.Column("size", words(), nullable=False),
        sa.Column("principal", words(), nullable=False),
        sa.Column("phase", words(), nullable=False),
        sa.Column("desired", words(), nullable=False),
        sa.Column("reason", words(), nullable=True),
        sa.Column("message", prose(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("charged_restarts", sa.Integer(), nullable=False),
        sa.Column("restarts_since_checkpoint", sa.Integer(), nullable=False),
        sa.Column("free_restarts_since_checkpoint", sa.Integer(), nullable=False),
        sa.Column("checkpoint_step", sa.BigInteger(), nullable=True),
        sa.Column("max_restarts", sa.Integer(), nullable=False),
        sa.Column("max_runtime_s", sa.Integer(), nullable=True),
        sa.Column("max_pending_s", sa.Integer(), nullable=True),
        sa.Column("spec", json_value(), nullable=False),
        sa.Column("resolved", json_value(), nullable=False),
        sa.Column("spec_hash", words(), nullable=False),
        sa.Column("progress", json_value(), nullable=True),
        sa.Column("last_event", sa.Integer(), nullable=False),
        sa.Column("retry_of", words(), nullable=True),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.Column("started_at", sa.Float(precision=53), nullable=True),
        sa.Column("finished_at", sa.Float(precision=53), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        sa.UniqueConstraint("live_folder", name=op.f("uq_runs_live_folder")),
        sa.UniqueConstraint("live_name", name=op.f("uq_runs_live_name")),
    )
    with op.batch_alter_table("runs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_runs_name"), ["name"], unique=False)
        batch_op.create_index(batch_op.f("ix_runs_phase"), ["phase"], unique=False)
        batch_op.create_index(batch_op.f("ix_runs_retry_of"), ["retry_of"], unique=False)

    op.create_table(
        "attempts",
        sa.Column("run_id", words(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("object_name", words(), nullable=False),
        sa.Column("uid", words(), nullable=True),
        sa.Column("token_hash", words(), nullable=False),
        sa.Column("phase", words(), nullable=False),
        sa.Column("reason", words(), nullable=True),
        sa.Column("message", prose(), nullable=True),
        sa.Column("charged", sa.Boolean(), nullable=True),
        sa.Column("rank", sa.Integer(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("signal", words(), nullable=True),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("last_lines", json_value(), nullable=True),
        sa.Column("pods", json_value(), nullable=False),
        sa.Column("resumed_from", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.Column("submitted_at", sa.Float(precision=53), nullable=True),
        sa.Column("started_at", sa.Float(precision=53), nullable=True),
        sa.Column("finished_at", sa.Float(precision=53), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_attempts_run_id_runs")),
        sa.PrimaryKeyConstraint("run_id", "number", name=op.f("pk_attempts")),
        sa.UniqueConstraint("object_name", name=op.f("uq_attempts_object_name")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_attempts_token_hash")),
    )
    op.create_table(
        "events",
        sa.Column("run_id", words(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("time", sa.Float(precision=53), nullable=False),
        sa.Column("kind", words(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column("message", prose(), nullable=False),
        sa.Column("data", json_value(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_events_run_id_runs")),
        sa.PrimaryKeyConstraint("run_id", "seq", name=op.f("pk_events")),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("principal", words(), nullable=False),
        sa.Column("key", words(), nullable=False),
        sa.Column("body_hash", words(), nullable=False),
        sa.Column("run_id", words(), nullable=False),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_idempotency_keys_run_id_runs")),
        sa.PrimaryKeyConstraint("principal", "key", name=op.f("pk_idempotency_keys")),
    )
    with op.batch_alter_table("idempotency_keys", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_idempotency_keys_created_at"), ["created_at"], unique=False)

    op.create_table(
        "metric_points",
        sa.Column("run_id", words(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("time", sa.Float(precision=53), nullable=False),
        sa.Column("values", json_value(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_metric_points_run_id_runs")),
        sa.PrimaryKeyConstraint("run_id", "attempt", "seq", name=op.f("pk_metric_points")),
    )
    op.create_table(
        "outbox",
        sa.Column("run_id", words(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("op", words(), nullable=False),
        sa.Column("object_name", words(), nullable=False),
        sa.Column("uid", words(), nullable=True),
        sa.Column("token", words(), nullable=True),
        sa.Column("due_at", sa.Float(precision=53), nullable=False),
        sa.Column("lease", words(), nullable=True),
        sa.Column("leased_until", sa.Float(precision=53), nullable=True),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_outbox_run_id_runs")),
        sa.PrimaryKeyConstraint("run_id", "attempt", "op", name=op.f("pk_outbox")),
    )
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_outbox_due_at"), ["due_at"], unique=False)

    op.create_table(
        "run_labels",
        sa.Column("run_id", words(), nullable=False),
        sa.Column("key", words(320), nullable=False),
        sa.Column("value", words(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_labels_run_id_runs")),
        sa.PrimaryKeyConstraint("run_id", "key", name=op.f("pk_run_labels")),
    )
    with op.batch_alter_table("run_labels", schema=None) as batch_op:
        batch_op.create_index("ix_run_labels_key_value", ["key", "value"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("run_labels", schema=None) as batch_op:
        batch_op.drop_index("ix_run_labels_key_value")

    op.drop_table("run_labels")
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_outbox_due_at"))

    op.drop_table("outbox")
    op.drop_table("metric_points")
    with op.batch_alter_table("idempotency_keys", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_idempotency_keys_created_at"))

    op.drop_table("idempotency_keys")
    op.drop_table("events")
    op.drop_table("attempts")
    with op.batch_alter_table("runs", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_runs_retry_of"))
        batch_op.drop_index(batch_op.f("ix_runs_phase"))
        batch_op.drop_index(batch_op.f("ix_runs_name"))

    op.drop_table("runs")
