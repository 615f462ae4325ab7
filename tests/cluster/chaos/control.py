"""The control plane's process, armed: it dies at a named instant, or when it is killed, and is started again."""

from __future__ import annotations

import re
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from controlplane.faults import VARIABLE
from controlplane.store.packed import unpack
from tests.cluster.chaos.quick import Forks, Server
from tests.cluster.layout import CHECKOUT
from tests.cluster.plane import LEASH, Plane

POINTS = """
    SELECT seq, step, NULL FROM metric_points WHERE run_id = :run AND attempt = :attempt
    UNION ALL SELECT NULL, NULL, data FROM metric_blocks WHERE run_id = :run AND attempt = :attempt
"""
ELSEWHERE = {"changes", "pieces", "purges", "queues", "sweeps"}  # test_instants.py and test_pieces.py die at theirs
CALL = re.compile(r'\bfault\("([a-z ]+)"\)')


def points() -> list[str]:
    """Every named instant of the sources that concerns the cluster, each standing there once."""
    sources = sorted((CHECKOUT / "controlplane").rglob("*.py"))
    found = {path: CALL.findall(path.read_text("utf-8")) for path in sources}
    names = [name for several in found.values() for name in several]
    assert len(names) == len(set(names)), Counter(names).most_common(1)
    return [name for path, several in found.items() if path.stem not in ELSEWHERE for name in several]


class Control(Plane):
    """`armed` is what the next start is armed with; `hits` counts the deaths at each point, `kills` all others.

    After a death at a point the next start is armed with what `then` says.
    """

    def __init__(self, home: Path, settings: dict[str, str]) -> None:
        self.armed = ""
        self.hits: Counter[str] = Counter()
        self.kills = 0
        self.then: Callable[[], str] = str
        self._clock = home.with_suffix(".clock")
        self._forks = Forks(LEASH)
        super().__init__(home, "127.0.0.1", {**settings, "require_token": "true", "chaos_clock": str(self._clock)})

    def start(self) -> None:
        """Start it, again and again while it dies at a point that it passes as it starts."""
        self._environment[VARIABLE] = self.armed
        try:
            super().start()
        except AssertionError:
            if not self._note():
                raise
            self.start()

    def close(self) -> None:
        """Nothing of it runs any more."""
        self.client.close()
        self._forks.close()

    def strike(self, armed: str | None = None) -> None:
        """kill -9, here and now; what it is started with next, where that is to be something else."""
        if self.process.poll() is None:
            self.kill()
            self.kills += 1
        else:
            self._note()
        self.armed = self.armed if armed is None else armed
        self.start()

    def pause(self, seconds: float) -> None:
        """It stands still, and does not know."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            self.process.send_signal(signal.SIGCONT)

    def jump(self, seconds: float) -> None:
        """Its clock is wrong by so much from now on, also after a start."""
        part = self._clock.with_suffix(".part")
        part.write_text(str(seconds))
        part.rename(self._clock)

    def tend(self) -> bool:
        """Start it again if it has died at its point; whether it had."""
        if self.process.poll() is None:
            return False
        assert self._note(), self.log.read_text()[-4000:]
        self.client.close()
        self.start()
        return True

    def read(self, query: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[Any]:
        """What its database says, read beside it."""
        connection = sqlite3.connect(f"file:{self.home / 'state.db'}?mode=ro", uri=True, timeout=30)
        try:
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()

    def points(self, run: str, attempt: int) -> list[tuple[int, int]]:
        """An attempt's stored points as (seq, step), in rows and, once its clock says that the run is over, packed."""
        found: list[tuple[int, int]] = []
        for seq, step, block in self.read(POINTS, {"run": run, "attempt": attempt}):
            packed = unpack(block, {"seq", "step"}) if block else [{"seq": seq, "step": step}]
            found += [(point["seq"], point["step"]) for point in packed]
        return sorted(found)

    def _spawned(self, arguments: list[str]) -> Server:
        return Server(self._forks, arguments, self._environment, self.log)

    def _note(self) -> bool:
        """Count a death; whether it was one at the armed point."""
        died = self.process.poll() == -signal.SIGKILL and bool(self.armed)
        if died:
            self.hits[self.armed.partition(":")[0]] += 1
            self.armed = self.then()
        return died
