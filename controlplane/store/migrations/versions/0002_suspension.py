"""Runs that can be suspended: since when, and for how long they were before."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("runs") as runs:
        runs.add_column(sa.Column("suspended_at", sa.Float(precision=53), nullable=True))
        runs.add_column(sa.Column("suspended_s", sa.Float(precision=53), nullable=False, server_default="0"))


def downgrade() -> None:
    with op.batch_alter_table("runs") as runs:
        runs.drop_column("suspended_s")
        runs.drop_column("suspended_at")
