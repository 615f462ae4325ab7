"""All that is Postgres' own: the engines, their limits, and the notices by which processes wake each other.

Every wait has an end. A process that stops in the middle of a transaction (a paused virtual machine, say) loses it
after `idle_in_transaction_session_timeout`, so that nobody waits for it for ever.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
from collections.abc import Collection

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from controlplane.store.signals import Signals

log = logging.getLogger(__name__)
OWN_CONNECTIONS = 4  # the writer's, the leader's, the listener's, one to spare
POOL_WAIT_S = 5
CHANNEL = "teragpt"
OF_ONE_NOTICE = 200  # runs: Postgres takes 7,999 bytes
LOOK_S = 1.0  # how long the listener takes to see that it shall stop, if nothing wakes it
AGAIN_S = 2.0
MIGRATION_LOCK = 7_236_480_091  # of pg_advisory_xact_lock; a number of our own
CONNECTING = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
LIMITS = {  # milliseconds
    "statement_timeout": 30_000,
    "lock_timeout": 10_000,
    "idle_in_transaction_session_timeout": 5_000,
}
PLANS = {  # what is kept of a plan made while a table was nearly empty must serve it when it is large
    "enable_seqscan": "off",
    "jit": "off",  # takes a plan that must read a whole table for a dear one, and compiles it for longer than it runs
}


def address(url: str) -> URL:
    """The URL for SQLAlchemy, with the driver that we have. Its text shows no password."""
    return make_url(url).set(drivername="postgresql+psycopg")


def open_engines(url: str, connections: int) -> tuple[Engine, Engine]:
    """An engine for reads, each of which sees one moment, and one for writes. No connection is made yet."""
    reader = _engine(url, connections).execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    return reader, _engine(url, OWN_CONNECTIONS)


def _engine(url: str, connections: int) -> Engine:
    place = address(url)
    options = " ".join(f"-c {name}={value}" for name, value in (LIMITS | PLANS).items())
    given = place.query.get("options", "")
    arguments = {name: value for name, value in CONNECTING.items() if name not in place.query}
    return create_engine(
        place,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=POOL_WAIT_S,
        pool_pre_ping=True,
        connect_args={**arguments, "application_name": "teragpt", "options": f"{options} {given}".strip()},
    )


def one_at_a_time(connection: Connection) -> None:
    """Within a transaction: be the only one that migrates, for as long as that takes."""
    connection.execute(text("SET LOCAL lock_timeout = 0"))
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})


class Notices:
    """Tells other processes what was committed, and hears of what they did, in a thread of its own until `close`.

    Hints, as all signals are: after each break of the connection everybody here is woken once.
    """

    def __init__(self, engine: Engine, signals: Signals) -> None:
        self._engine, self._signals = engine, signals
        self._me = secrets.token_hex(4)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notices", daemon=True)
        self._thread.start()

    def tell(self, connection: Connection, run_ids: Collection[str], *, work: bool) -> None:
        """Within a transaction: others shall hear of it once it is committed."""
        ids, said = sorted(run_ids), [self._me, "work" if work else "-"]
        for at in range(0, max(1, len(ids)), OF_ONE_NOTICE):
            words = " ".join([*said, *ids[at : at + OF_ONE_NOTICE]])
            connection.execute(text("SELECT pg_notify(:channel, :words)"), {"channel": CHANNEL, "words": words})

    def close(self) -> None:
        """Hear no more."""
        self._stopping.set()
        with contextlib.suppress(SQLAlchemyError), self._engine.begin() as connection:
            self.tell(connection, [], work=False)  # wakes our own listener, which finds that it shall stop
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(SQLAlchemyError, OSError):
                self._listen()
            self._stopping.wait(AGAIN_S)

    def _listen(self) -> None:
        """Hear, until told to stop or the connection breaks. Raises SQLAlchemyError."""
        import psycopg

        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(f"LISTEN {CHANNEL}")
            self._signals.everyone()
            session = connection.connection.driver_connection
            assert isinstance(session, psycopg.Connection)
            try:
                while not self._stopping.is_set():
                    for notice in session.notifies(timeout=LOOK_S, stop_after=1):
                        self._hear(notice.payload)
            except psycopg.Error as error:
                log.warning("notices of other processes are not heard now: %s", str(error).splitlines()[0])
                connection.invalidate()
            else:
                connection.exec_driver_sql("UNLISTEN *")

    def _hear(self, words: str) -> None:
        sender, work, *run_ids = words.split(" ")
        if sender == self._me:
            return
        self._signals.touched(run_ids)
        if work == "work":
            self._signals.work.set()
