"""Sweeps, and which point of which sweep a run is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from controlplane.store.columns import json_value, words

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sweeps",
        sa.Column("id", words(), nullable=False),
        sa.Column("name", words(), nullable=False),
        sa.Column("principal", words(), nullable=False),
        sa.Column("parallelism", sa.Integer(), nullable=False),
        sa.Column("spec", json_value(), nullable=False),
        sa.Column("points", json_value(), nullable=False),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.Column("cancelled_at", sa.Float(precision=53), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sweeps")),
    )
    op.create_index(op.f("ix_sweeps_name"), "sweeps", ["name"], unique=False)
    with op.batch_alter_table("runs", recreate="never") as runs:  # other tables point at its rows
        runs.add_column(sa.Column("sweep_id", words(), nullable=True))
        runs.add_column(sa.Column("sweep_point", sa.Integer(), nullable=True))
        runs.create_index(op.f("ix_runs_sweep_id"), ["sweep_id"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("runs") as runs:
        runs.drop_index(op.f("ix_runs_sweep_id"))
        runs.drop_column("sweep_point")
        runs.drop_column("sweep_id")
    op.drop_table("sweeps")
