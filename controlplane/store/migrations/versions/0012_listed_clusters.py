"""The index that lists read on SQLite holds the run's cluster too: pages of one cluster read no other row."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

BEFORE = ["id", "deleted_at", "task_of", "phase", "size", "pinned", "created_at", "search"]
LISTED = [*BEFORE, "cluster"]


def upgrade() -> None:
    _index(LISTED)


def downgrade() -> None:
    _index(BEFORE)


def _index(columns: list[str]) -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.drop_index("ix_runs_listed", "runs")
        op.create_index("ix_runs_listed", "runs", columns, unique=False)
