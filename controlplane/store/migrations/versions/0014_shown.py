"""On Postgres, an index of the runs that lists show, in their order: until it has counted rows, it sorts them else."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

NAME = "ix_runs_shown"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.create_index(NAME, "runs", ["id"], postgresql_where=sa.text("task_of IS NULL AND deleted_at IS NULL"))


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.drop_index(NAME, "runs")
