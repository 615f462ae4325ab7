"""Runs can be suspended, can be found to hang, have a number of nodes; the installation has an identity."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from ulid import ULID

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("runs") as runs:
        runs.add_column(sa.Column("suspended_at", sa.Float(precision=53), nullable=True))
        runs.add_column(sa.Column("max_silence_s", sa.Integer(), nullable=True))
        runs.add_column(sa.Column("nodes", sa.Integer(), nullable=False, server_default="1"))
        runs.add_column(sa.Column("suspended_s", sa.Float(precision=53), nullable=False, server_default="0"))
    installation = op.create_table(
        "installation",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_installation")),
    )
    op.bulk_insert(installation, [{"id": str(ULID()).lower()}])


def downgrade() -> None:
    op.drop_table("installation")
    with op.batch_alter_table("runs") as runs:
        runs.drop_column("suspended_s")
        runs.drop_column("nodes")
        runs.drop_column("max_silence_s")
        runs.drop_column("suspended_at")
