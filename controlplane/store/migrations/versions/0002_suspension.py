"""Runs can be suspended, can hang, have a number of nodes and tasks; the installation has an identity."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from ulid import ULID

from controlplane.store.columns import words

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("runs") as runs:
        runs.add_column(sa.Column("suspended_at", sa.Float(precision=53), nullable=True))
        runs.add_column(sa.Column("task", words(), nullable=True))
        runs.add_column(sa.Column("task_of", words(), nullable=True))
        runs.create_index(op.f("ix_runs_task_of"), ["task_of"], unique=False)
        runs.add_column(sa.Column("max_silence_s", sa.Integer(), nullable=True))
        runs.add_column(sa.Column("nodes", sa.Integer(), nullable=False, server_default="1"))
        runs.add_column(sa.Column("suspended_s", sa.Float(precision=53), nullable=False, server_default="0"))
    installation = op.create_table(
        "installation",
        sa.Column("id", words(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_installation")),
    )
    op.bulk_insert(installation, [{"id": str(ULID()).lower()}])


def downgrade() -> None:
    op.drop_table("installation")
    with op.batch_alter_table("runs") as runs:
        runs.drop_column("suspended_s")
        runs.drop_column("nodes")
        runs.drop_column("max_silence_s")
        runs.drop_index(op.f("ix_runs_task_of"))
        runs.drop_column("task_of")
        runs.drop_column("task")
        runs.drop_column("suspended_at")
