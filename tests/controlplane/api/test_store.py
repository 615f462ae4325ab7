"""The store's routes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from controlplane.store.migrate import newest_revision
from tests.controlplane.plane import Plane


def test_a_backup_is_a_whole_database_and_leaves_nothing_in_the_home(
    client: TestClient, plane: Plane, run: dict[str, Any], tmp_path: Path
) -> None:
    before = {path.name for path in plane.home.iterdir()}
    reply = client.get("/v1/store/backup")
    assert (reply.status_code, reply.headers["content-length"]) == (200, str(len(reply.content)))
    (tmp_path / "backup").write_bytes(reply.content)
    with closing(sqlite3.connect(tmp_path / "backup")) as copy:
        assert copy.execute("SELECT id FROM runs").fetchall() == [(run["id"],)]
    assert {path.name for path in plane.home.iterdir()} == before


def test_the_store_tells_its_size_and_gives_space_back(client: TestClient) -> None:
    told = client.get("/v1/store").json()
    assert (told["database"], told["revision"], told["runs"]) == ("sqlite", newest_revision(), 0)
    assert told["bytes"] > told["reclaimable_bytes"] >= 0
    assert told["retention"] == {
        "delete_after_days": 0.0, "purge_after_days": 0.0, "due_for_deletion": [], "due_for_purge": [],
    }  # fmt: skip
    done = client.post("/v1/store/vacuum").json()
    assert done["bytes_before"] >= done["bytes_after"] > 0
