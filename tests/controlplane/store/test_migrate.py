from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory

from controlplane.store.migrate import FOLDER, newest_revision, stored_revision
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
