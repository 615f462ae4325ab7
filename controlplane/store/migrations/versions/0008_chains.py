"""Runs that start when another one has succeeded."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from controlplane.store.columns import words

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("runs", recreate="never") as runs:  # other tables point at its rows
        runs.add_column(sa.Column("after_id", words(), nullable=True))
        runs.create_index(op.f("ix_runs_after_id"), ["after_id"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("runs") as runs:
        runs.drop_index(op.f("ix_runs_after_id"))
        runs.drop_column("after_id")
