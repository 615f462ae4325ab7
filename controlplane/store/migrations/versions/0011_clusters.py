"""The further cluster of each run, by which reconcilers share the work; those so far are on the installation's own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from controlplane.store.columns import words

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("runs", recreate="never") as runs:  # other tables point at its rows
        runs.add_column(sa.Column("cluster", words(), nullable=False, server_default=""))


def downgrade() -> None:
    with op.batch_alter_table("runs") as runs:
        runs.drop_column("cluster")
