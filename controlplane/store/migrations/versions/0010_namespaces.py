"""The namespace of each run, by which quotas count."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

from controlplane.store.columns import words

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

ENDED = ("succeeded", "failed", "cancelled")  # they hold nothing any more


def upgrade() -> None:
    with op.batch_alter_table("runs", recreate="never") as runs:  # other tables point at its rows
        runs.add_column(sa.Column("namespace", words(), nullable=False, server_default=""))
    _fill(op.get_bind())


def downgrade() -> None:
    with op.batch_alter_table("runs") as runs:
        runs.drop_column("namespace")


def _fill(connection: sa.Connection) -> None:
    """The namespaces that live runs have named."""
    runs = sa.table("runs", *(sa.column(name) for name in ("id", "phase", "resolved", "namespace")))
    live = sa.select(runs.c.id, runs.c.resolved).where(runs.c.phase.not_in(ENDED))
    for run_id, resolved in connection.execute(live).all():
        if namespace := json.loads(resolved).get("namespace"):
            connection.execute(runs.update().where(runs.c.id == run_id).values(namespace=namespace))
