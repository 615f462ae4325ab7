"""A Postgres server of a test run's own: Debian's binaries, a folder that goes away, a port on loopback."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import SelectBase
from sqlalchemy.dialects.postgresql import psycopg as driver

from controlplane.store.store import Store
from controlplane.store.tables import Base

ON_SQLITE = pytest.mark.parametrize("store", ["sqlite"], indirect=True)  # of SQLite's own, or long and no different
ON_POSTGRES = pytest.mark.parametrize("store", ["postgres"], indirect=True)
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
NEEDED = os.environ.get("TERAGPT_NEED_POSTGRES") == "1"  # .ci/run installs it
USER = "teragpt"
DIALECT = driver.dialect()  # type: ignore[no-untyped-call]
SETTINGS = {"fsync": "off", "shared_buffers": "32MB", "max_connections": "80", "autovacuum": "off"}
START_S = 60.0


class Server:
    """A server that can be stopped, killed and started again. It answers everyone on loopback."""

    def __init__(self, **settings: str) -> None:
        self._settings = {**SETTINGS, **settings}
        self.folder = Path(tempfile.mkdtemp(prefix="teragpt-postgres-"))
        self._bin = BINARIES[-1].parent
        self._process: subprocess.Popen[bytes] | None = None
        self._who = _somebody()
        if self._who:
            os.chown(self.folder, *(pwd.getpwnam(self._who["user"])[2:4]))
        command = [str(self._bin / "initdb"), "--no-sync", "--auth=trust", f"--username={USER}", "--encoding=UTF8"]
        subprocess.run(
            [*command, "--locale=C", str(self.folder / "data")], check=True, stdout=subprocess.DEVNULL, **self._run
        )
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    @property
    def _run(self) -> dict[str, Any]:
        return {"cwd": self.folder, **self._who}

    def start(self) -> None:
        """Start it, and wait until it answers."""
        given = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        place = ["-D", "data", "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.folder)]
        with (self.folder / "log").open("ab") as log:
            command = [str(self._bin / "postgres"), *place, *given]
            process: subprocess.Popen[bytes] = subprocess.Popen(command, stdout=log, stderr=log, **self._run)
        self._process = process
        deadline = time.monotonic() + START_S
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
            except psycopg.OperationalError:
                told = (self.folder / "log").read_text()
                assert process.poll() is None, told
                assert time.monotonic() < deadline, told
                time.sleep(0.02)
            else:
                return

    def stop(self, number: int = signal.SIGINT) -> None:
        """End it and every connection: SIGINT, or SIGQUIT for a crash."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None

    @property
    def stopped(self) -> bool:
        """Whether it does not run."""
        return self._process is None

    def close(self) -> None:
        """End it, and leave nothing."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str) -> str:
        """The URL of a database."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def do(self, command: str) -> None:
        """A command outside of transactions."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(command.encode())

    @contextmanager
    def database(self) -> Generator[str]:
        """The URL of a new database, which goes away afterwards."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        self.do(f"CREATE DATABASE {name}")
        try:
            yield self.url(name)
        finally:
            self.do(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def server(**settings: str) -> Generator[Server]:
    """A server that runs."""
    made = Server(**settings)
    try:
        made.start()
        yield made
    finally:
        made.close()


def empty(url: str) -> None:
    """Make a database as new, which is many times faster than a new one."""
    tables = [table.name for table in reversed(Base.metadata.sorted_tables) if table.name != "installation"]
    with psycopg.connect(url) as connection:
        for name in tables:
            connection.execute(f"DELETE FROM {name}".encode())  # noqa: S608 - names of our own tables
        connection.execute("INSERT INTO leader VALUES (0, '', 0)")
        known = [*tables, "installation", "alembic_version"]
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (name,) in found:
            if name not in known:
                connection.execute(f"DROP TABLE {name}".encode())


def planned(store: Store, statement: SelectBase) -> str:
    """How Postgres would run a statement as the store asks it; "x" stands for each text that is not given."""
    compiled = statement.compile(dialect=DIALECT)
    given = {name: "x" for name, bind in compiled.binds.items() if bind.value is None}
    text = statement.params(given).compile(dialect=DIALECT, compile_kwargs={"literal_binds": True})
    with store.read() as session:
        return "\n".join(row[0] for row in session.connection().exec_driver_sql(f"EXPLAIN {text}".replace("%", "%%")))


def _somebody() -> dict[str, Any]:
    """Whom to be, since Postgres refuses root; nothing where we are somebody."""
    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name for entry in pwd.getpwall()}
    name = "postgres" if "postgres" in names else "nobody"
    return {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []}
