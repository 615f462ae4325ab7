"""Metrics of runs that have ended lie in compressed columns, and what is drawn of long ones beside them."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

from controlplane.store.columns import words
from controlplane.store.packed import unpack

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

PLACE = ("attempt", "seq", "step", "time")


def upgrade() -> None:
    op.create_table(
        "metric_blocks",
        sa.Column("run_id", words(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("first_seq", sa.BigInteger(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("points", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_metric_blocks_run_id_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "attempt", "first_seq", name=op.f("pk_metric_blocks")),
    )
    op.create_table(
        "metric_tiers",
        sa.Column("run_id", words(), nullable=False),
        sa.Column("key", words(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_metric_tiers_run_id_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "key", name=op.f("pk_metric_tiers")),
    )


def downgrade() -> None:
    _back_to_rows(op.get_bind())
    op.drop_table("metric_tiers")
    op.drop_table("metric_blocks")


def _back_to_rows(connection: sa.Connection) -> None:
    blocks = sa.table("metric_blocks", *(sa.column(name) for name in ("run_id", "attempt", "first_seq", "data")))
    points = sa.table("metric_points", *(sa.column(name) for name in ("run_id", *PLACE, "values")))
    places = connection.execute(sa.select(blocks.c.run_id, blocks.c.attempt, blocks.c.first_seq)).all()
    for run_id, attempt, first in places:
        here = (blocks.c.run_id == run_id, blocks.c.attempt == attempt, blocks.c.first_seq == first)
        for point in unpack(connection.execute(sa.select(blocks.c.data).where(*here)).scalar_one()):
            values = {name: value for name, value in point.items() if name not in PLACE}
            row = {name: point[name] for name in PLACE}
            connection.execute(points.insert().values(run_id=run_id, **row, values=json.dumps(values)))
