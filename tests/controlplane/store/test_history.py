"""A database of any earlier version, with a row in every table, becomes this version's and loses nothing."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from controlplane.store.migrate import FOLDER, newest_revision, revisions, stored_revision
from controlplane.store.postgres import open_engines
from controlplane.store.sqlite import open_engine
from controlplane.store.store import DATABASE, Store

RUN = "run_01JD3M7X9K5V2Q8R4T6W0Y1Z2A"
RESOLVED = {"nodes": 2, "gpus_per_node": 0, "cpus_per_node": 1.0, "labels": {"team": "LM"}, "name": "Größe"}
KNOWN: dict[str, Any] = {  # of any table; any other column has a value by its type
    "run_id": RUN,
    "phase": "succeeded",
    "desired": "running",
    "live_name": None,
    "live_folder": None,
    "resolved": RESOLVED,
    "spec": {"size": "tiny"},
    "labels": RESOLVED["labels"],
    "progress": {"step": 7},
    "values": {"loss": 3.5},
    "data": {"reason": "Crash"},
    "task": None,
    "task_of": None,
    "deleted_at": None,
}
ONE_ROW = {"installation", "leader"}  # the migration that makes them fills them


def value(table: str, column: sa.Column[Any]) -> Any:
    """What stands in a column of the row that a test makes."""
    if table == "runs" and column.name == "id":
        return RUN
    if isinstance(column.type, sa.LargeBinary):
        return b"\x00bytes\xff"
    if column.name in KNOWN:
        known = KNOWN[column.name]
        return json.dumps(known) if isinstance(known, dict) and not isinstance(column.type, sa.JSON) else known
    if isinstance(column.type, sa.JSON):
        return ["ä", 1.5, None]
    kind = column.type.python_type
    return f"{column.name} ä" if kind is str else kind(1)


def old(url: str, home: Path, revision: str) -> dict[str, dict[str, Any]]:
    """A database of an earlier revision with a row in every table; what they hold, by table."""
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    engine = open_engines(url, 1)[1] if url else open_engine(home / DATABASE)
    with engine.execution_options(writer=True).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    metadata = sa.MetaData()
    metadata.reflect(engine)
    with engine.execution_options(writer=True).begin() as connection:
        for table in metadata.sorted_tables:
            if table.name not in {*ONE_ROW, "alembic_version"}:
                connection.execute(
                    sa.insert(table).values({column: value(table.name, column) for column in table.columns})
                )
        rows = {
            table.name: dict(connection.execute(sa.select(table)).mappings().one())
            for table in metadata.sorted_tables
            if table.name != "alembic_version"
        }
    engine.dispose()
    return rows


@pytest.mark.parametrize("revision", sorted(revisions() - {newest_revision()}))
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_every_row_of_an_earlier_version_is_kept(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, revision: str
) -> None:
    if kind == "postgres":
        with request.getfixturevalue("postgres_server").database() as url:
            upgraded(url, tmp_path, revision)
    else:
        upgraded("", tmp_path, revision)


def upgraded(url: str, home: Path, revision: str) -> None:
    """Open it as this version, and compare what is in it with what was."""
    before = old(url, home, revision)
    with closing(Store(home, url)):
        engine = open_engines(url, 1)[1] if url else open_engine(home / DATABASE)
        metadata = sa.MetaData()
        metadata.reflect(engine)
        with engine.connect() as connection:
            for name, row in before.items():
                now = connection.execute(sa.select(metadata.tables[name])).mappings().one()
                assert {key: now[key] for key in row} == row, name
        assert stored_revision(engine) == newest_revision()
        engine.dispose()
