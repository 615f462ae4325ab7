"""Brings a database to this version's tables at start, by the migrations that lie in the package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from controlplane.domain.errors import NewerStore

FOLDER = Path(__file__).parent / "migrations"


def migrate(engine: Engine, place: str, alone: Callable[[Connection], None] = lambda _: None) -> None:
    """Upgrade the database to the newest revision, wholly or not at all; `place` is named in errors. Raises NewerStore.

    `alone` is called first in the transaction that upgrades, and returns once no other process does.
    """
    if stored_revision(engine) != newest_revision():
        _upgrade(engine, place, alone)  # apart, since Alembic takes a third of a second to import


def stored_revision(engine: Engine) -> str | None:
    """The database's revision; None for an empty one."""
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return revision


def newest_revision() -> str:
    """The last of the package's revisions, which their files' names begin with."""
    return max(revisions())


def revisions() -> set[str]:
    """Every revision that this version knows."""
    return {path.stem.partition("_")[0] for path in (FOLDER / "versions").glob("[0-9]*_*.py")}


def _upgrade(engine: Engine, place: str, alone: Callable[[Connection], None]) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    with engine.execution_options(writer=True).begin() as connection:
        alone(connection)
        present = MigrationContext.configure(connection).get_current_revision()
        if present is not None and present not in known:
            raise NewerStore(place, present)
        if present == scripts.get_current_head():
            return
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
