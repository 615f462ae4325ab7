"""Queues that can be closed, and the queue of each run."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

from controlplane.store.columns import prose, words

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

ENDED = ("succeeded", "failed", "cancelled")  # what they waited in does not matter any more


def upgrade() -> None:
    op.create_table(
        "queues",
        sa.Column("name", words(), nullable=False),
        sa.Column("state", words(), nullable=False),
        sa.Column("note", prose(), nullable=True),
        sa.Column("changed_at", sa.Float(precision=53), nullable=False),
        sa.Column("changed_by", words(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_queues")),
    )
    with op.batch_alter_table("runs", recreate="never") as runs:  # other tables point at its rows
        runs.add_column(sa.Column("queue", words(), nullable=False, server_default="default"))
        runs.create_index(op.f("ix_runs_queue"), ["queue"], unique=False)
    _fill(op.get_bind())


def downgrade() -> None:
    with op.batch_alter_table("runs") as runs:
        runs.drop_index(op.f("ix_runs_queue"))
        runs.drop_column("queue")
    op.drop_table("queues")


def _fill(connection: sa.Connection) -> None:
    """The queues that live runs have named."""
    runs = sa.table("runs", *(sa.column(name) for name in ("id", "phase", "resolved", "queue")))
    live = sa.select(runs.c.id, runs.c.resolved).where(runs.c.phase.not_in(ENDED))
    for run_id, resolved in connection.execute(live).all():
        if queue := json.loads(resolved).get("scheduling", {}).get("queue"):
            connection.execute(runs.update().where(runs.c.id == run_id).values(queue=queue))
