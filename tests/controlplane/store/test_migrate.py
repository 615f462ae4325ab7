from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import text

from controlplane.store.migrate import FOLDER, newest_revision, stored_revision
from controlplane.store.postgres import open_engines
from controlplane.store.sqlite import open_engine
from controlplane.store.store import DATABASE, Store


def test_the_newest_file_is_the_newest_revision() -> None:
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    assert newest_revision() == ScriptDirectory.from_config(config).get_current_head()


def test_a_database_has_no_revision_before_its_first_migration(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / DATABASE)
    assert stored_revision(engine) is None
    engine.dispose()
    Store(tmp_path).close()
    assert stored_revision(engine) == newest_revision()
    engine.dispose()


def test_a_database_that_is_up_to_date_is_opened_without_alembic(tmp_path: Path) -> None:
    Store(tmp_path).close()
    script = "import sys, pathlib\nfrom controlplane.store.store import Store\n"
    script += f"Store(pathlib.Path({str(tmp_path)!r})).close()\nprint('alembic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


OLD_RUN = {
    "id": "run_01JD3M7X9K5V2Q8R4T6W0Y1Z2A",
    "name": "Größe 7",
    "folder": "/runs/x",
    "size": "124m",
    "principal": "ann",
    "phase": "succeeded",
    "desired": "running",
    "attempt": 1,
    "charged_restarts": 0,
    "restarts_since_checkpoint": 0,
    "free_restarts_since_checkpoint": 0,
    "max_restarts": 3,
    "nodes": 4,
    "spec": json.dumps({"size": "124m"}),
    "resolved": json.dumps({"nodes": 4, "gpus_per_node": 8, "cpus_per_node": 2.5, "labels": {"team": "LM"}}),
    "spec_hash": "x",
    "last_event": 1,
    "created_at": 1.0,
}


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_runs_of_the_version_before_are_labelled_searched_and_counted(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    names = ", ".join(OLD_RUN)
    filled = text("SELECT revision, labels, search, pinned, gpus, cpus, notes, deleted_at FROM runs")

    def upgrade(url: str) -> None:
        engine = open_engines(url, 1)[1] if url else open_engine(tmp_path / DATABASE)
        with engine.execution_options(writer=True).begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "0003")
            values = ", ".join(f":{name}" for name in OLD_RUN)
            connection.execute(text(f"INSERT INTO runs ({names}) VALUES ({values})"), OLD_RUN)  # noqa: S608 - ours
            command.upgrade(config, "0004")
            (found,) = connection.execute(filled).all()
        engine.dispose()
        assert found == (1, '{"team": "LM"}', "grösse 7 team=lm", False, 32, 10.0, None, None)

    if kind == "sqlite":
        upgrade("")
    else:
        with request.getfixturevalue("postgres_server").database() as url:
            upgrade(url)


def test_live_runs_of_the_version_before_wait_in_the_queue_that_they_named(tmp_path: Path) -> None:
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    engine = open_engine(tmp_path / DATABASE)
    named = json.dumps({"scheduling": {"queue": "research"}})
    kinds = [("queued", named), ("running", "{}"), ("succeeded", named)]
    with engine.execution_options(writer=True).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0008")
        for number, (phase, resolved) in enumerate(kinds):
            row = {**OLD_RUN, "id": f"run_{number}", "phase": phase, "resolved": resolved}
            values = ", ".join(f":{name}" for name in row)
            connection.execute(text(f"INSERT INTO runs ({', '.join(row)}) VALUES ({values})"), row)  # noqa: S608 - ours
        command.upgrade(config, "0009")
        found = [*connection.execute(text("SELECT queue FROM runs ORDER BY id")).scalars()]
    engine.dispose()
    assert found == ["research", "default", "default"]
