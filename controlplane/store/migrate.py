"""Brings a database to this version's tables at start, by the migrations that lie in the package."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from controlplane.domain.errors import NewerStore

FOLDER = Path(__file__).parent / "migrations"


def migrate(engine: Engine, place: Path) -> None:
    """Upgrade the database to the newest revision; `place` is named in errors. Raises NewerStore."""
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    with engine.execution_options(writer=True).begin() as connection:
        present = MigrationContext.configure(connection).get_current_revision()
        if present is not None and present not in known:
            raise NewerStore(str(place), present)
        if present == scripts.get_current_head():
            return
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
