"""Several processes may share the store: one of them leads, and what they all must read lies in it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from controlplane.store.columns import words

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    leader = op.create_table(
        "leader",
        sa.Column("epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("holder", words(), nullable=False),
        sa.Column("expires_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("epoch", name=op.f("pk_leader")),
    )
    op.bulk_insert(leader, [{"epoch": 0, "holder": "", "expires_at": 0.0}])
    op.create_table(
        "files",
        sa.Column("name", words(512), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_files")),
    )
    op.create_index(op.f("ix_files_changed_at"), "files", ["changed_at"], unique=False)
    op.create_table(
        "file_parts",
        sa.Column("name", words(512), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["name"], ["files.name"], name=op.f("fk_file_parts_name_files"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("name", "start", name=op.f("pk_file_parts")),
    )


def downgrade() -> None:
    op.drop_table("file_parts")
    op.drop_table("files")
    op.drop_table("leader")
