"""The control plane's process, armed: it dies at a named instant, or when it is killed, and is started again."""

from __future__ import annotations

import re
import signal
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

from controlplane.faults import VARIABLE
from tests.cluster.layout import CHECKOUT
from tests.cluster.plane import Plane

CALL = re.compile(r'\bfault\("([a-z ]+)"\)')


def points() -> list[str]:
    """Every named instant of the sources, each standing there once."""
    sources = sorted((CHECKOUT / "controlplane").rglob("*.py"))
    found = [name for path in sources for name in CALL.findall(path.read_text("utf-8"))]
    assert len(found) == len(set(found)), Counter(found).most_common(1)
    return found


class Control(Plane):
    """`armed` is what the next start is armed with; `hits` counts the deaths at each point, `kills` all others."""

    def __init__(self, home: Path, settings: dict[str, str]) -> None:
        self.armed = ""
        self.hits: Counter[str] = Counter()
        self.kills = 0
        super().__init__(home, "127.0.0.1", {**settings, "require_token": "true"})

    def start(self) -> None:
        """Start it, again and again while it dies at a point that it passes as it starts."""
        self._command[2] = "tests.cluster.chaos.quick"
        self._environment[VARIABLE] = self.armed
        try:
            super().start()
        except AssertionError:
            if not self._note():
                raise
            self.start()

    def strike(self) -> None:
        """kill -9, here and now."""
        if self.process.poll() is None:
            self.kill()
            self.kills += 1
        else:
            self._note()
        self.start()

    def tend(self) -> bool:
        """Start it again if it has died at its point; whether it had."""
        if self.process.poll() is None:
            return False
        assert self._note(), self.log.read_text()[-4000:]
        self.client.close()
        self.start()
        return True

    def read(self, query: str, *values: Any) -> list[Any]:
        """What its database says, read beside it."""
        connection = sqlite3.connect(f"file:{self.home / 'state.db'}?mode=ro", uri=True, timeout=30)
        try:
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()

    def _note(self) -> bool:
        """Count a death; whether it was one at the armed point."""
        died = self.process.poll() == -signal.SIGKILL and bool(self.armed)
        if died:
            self.hits[self.armed.partition(":")[0]] += 1
            self.armed = ""
            self._environment[VARIABLE] = ""
        return died
