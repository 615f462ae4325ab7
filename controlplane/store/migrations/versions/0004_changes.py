"""Runs can be changed, annotated, cloned and hidden; what lists and sums look at has columns of its own."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

from controlplane.store.columns import json_value, prose, words

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

LISTED = ["id", "deleted_at", "task_of", "phase", "size", "pinned", "created_at", "search"]
FEW = 500  # rows of one statement: years of runs do not fit into memory


def upgrade() -> None:
    with op.batch_alter_table("runs", recreate="never") as runs:  # other tables point at its rows
        runs.add_column(sa.Column("revision", sa.Integer(), nullable=False, server_default="1"))
        runs.add_column(sa.Column("labels", json_value(), nullable=False, server_default="{}"))
        runs.add_column(sa.Column("notes", prose(), nullable=True))
        runs.add_column(sa.Column("pinned", sa.Boolean(), nullable=False, server_default=sa.false()))
        runs.add_column(sa.Column("search", prose(), nullable=False, server_default=""))
        runs.add_column(sa.Column("gpus", sa.Integer(), nullable=False, server_default="0"))
        runs.add_column(sa.Column("cpus", sa.Float(precision=53), nullable=False, server_default="0"))
        runs.add_column(sa.Column("clone_of", words(), nullable=True))
        runs.add_column(sa.Column("deleted_at", sa.Float(precision=53), nullable=True))
        runs.create_index(op.f("ix_runs_clone_of"), ["clone_of"], unique=False)
    with op.batch_alter_table("attempts") as attempts:
        attempts.add_column(sa.Column("priority", words(), nullable=True))
    op.drop_index("ix_run_labels_key_value", "run_labels")
    op.create_index("ix_run_labels_key_value_run_id", "run_labels", ["key", "value", "run_id"], unique=False)
    if op.get_bind().dialect.name == "sqlite":
        op.create_index("ix_runs_listed", "runs", LISTED, unique=False)
    _fill(op.get_bind())


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.drop_index("ix_runs_listed", "runs")
    op.drop_index("ix_run_labels_key_value_run_id", "run_labels")
    op.create_index("ix_run_labels_key_value", "run_labels", ["key", "value"], unique=False)
    with op.batch_alter_table("attempts") as attempts:
        attempts.drop_column("priority")
    with op.batch_alter_table("runs") as runs:
        runs.drop_index(op.f("ix_runs_clone_of"))
        for name in ("deleted_at", "clone_of", "cpus", "gpus", "search", "pinned", "notes", "labels", "revision"):
            runs.drop_column(name)


def _fill(connection: sa.Connection) -> None:
    """What the runs that are there say in their resolved specs, in the new columns."""
    names = ("id", "name", "resolved", "labels", "search", "gpus", "cpus")
    runs = sa.table("runs", *(sa.column(name) for name in names))
    last = ""
    while rows := connection.execute(
        sa.select(runs.c.id, runs.c.name, runs.c.resolved).where(runs.c.id > last).order_by(runs.c.id).limit(FEW)
    ).all():
        for run_id, name, text in rows:
            connection.execute(runs.update().where(runs.c.id == run_id).values(**_values(name, json.loads(text))))
        last = rows[-1][0]


def _values(name: str, resolved: dict[str, Any]) -> dict[str, Any]:
    labels, nodes = resolved.get("labels", {}), resolved.get("nodes", 1)
    return {
        "labels": json.dumps(labels),
        "search": " ".join([name, *(f"{key}={value}" for key, value in labels.items())]).casefold(),
        "gpus": nodes * (resolved.get("gpus_per_node") or 0),
        "cpus": nodes * (resolved.get("cpus_per_node") or 0),
    }
