"""What a run's steps took beside its plan, recorded once it has ended; those that ended before are without."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from controlplane.store.columns import json_value

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("runs", recreate="never") as runs:  # other tables point at its rows
        runs.add_column(sa.Column("measured", json_value(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("runs") as runs:
        runs.drop_column("measured")
