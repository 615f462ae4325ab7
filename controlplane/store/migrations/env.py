"""Alembic's entry: migrates the connection that `controlplane.store.migrate` hands over."""

from __future__ import annotations

from alembic import context

from controlplane.store.tables import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
context.run_migrations()
