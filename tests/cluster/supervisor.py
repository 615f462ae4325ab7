"""Keeps the cluster's programs running, as systemd does on a real node: `python supervisor.py FOLDER`.

FOLDER/programs.json is a list of programs; each is started once what it needs accepts connections, and again a second
after it ended, however it ended, unless FOLDER/held/NAME exists: then it is stopped for as long as that file does.
FOLDER/status.json tells what runs. SIGTERM stops everything, the last first. As the first process of a process
namespace it also buries the orphans, and when it ends the kernel kills what is left in there.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

TICK_S = 0.1
AGAIN_S = 1.0
STOP_S = 5.0  # from SIGTERM to SIGKILL


@dataclass
class Program:
    """One line of programs.json and how it is doing. `needs` are sockets: a path or `address:port`."""

    name: str
    argv: list[str]
    needs: list[str] = field(default_factory=list)
    pid: int = 0
    starts: int = 0
    not_before: float = 0.0
    kill_at: float = 0.0


class Supervisor:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ending = False
        self.programs: list[Program] = []
        signal.signal(signal.SIGTERM, self._end)

    def run(self) -> None:
        listed = self.folder / "programs.json"
        self._report()
        while not self.ending and not listed.exists():
            time.sleep(TICK_S)
        if listed.exists():
            self.programs = [Program(**each) for each in json.loads(listed.read_text())]
        while not self.ending:
            self._reap()
            for program in self.programs:
                self._tend(program)
            time.sleep(TICK_S)
        for program in reversed(self.programs):
            self._stop_and_wait(program)

    def _end(self, _signal: int, _frame: FrameType | None) -> None:
        self.ending = True

    def _tend(self, program: Program) -> None:
        now = time.monotonic()
        held = (self.folder / "held" / program.name).exists()
        if program.pid and held:
            self._stop(program)
        elif not program.pid and not held and now >= program.not_before and all(map(accepts, program.needs)):
            self._start(program)

    def _start(self, program: Program) -> None:
        log = str(self.folder / "logs" / f"{program.name}.log")
        program.starts += 1
        program.kill_at = 0.0
        program.pid = os.posix_spawnp(
            program.argv[0],
            program.argv,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigdef=[signal.SIGTERM],
        )
        self._report()

    def _stop(self, program: Program) -> None:
        """Ask it to end; insist when it has not within STOP_S."""
        now = time.monotonic()
        if not program.kill_at:
            program.kill_at = now + STOP_S
            os.kill(program.pid, signal.SIGTERM)
            os.kill(program.pid, signal.SIGCONT)  # it may have been paused
        elif now > program.kill_at:
            os.kill(program.pid, signal.SIGKILL)

    def _stop_and_wait(self, program: Program) -> None:
        while program.pid:
            self._stop(program)
            time.sleep(TICK_S)
            self._reap()

    def _reap(self) -> None:
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for program in self.programs:
                if program.pid == pid:
                    program.pid = 0
                    program.not_before = time.monotonic() + AGAIN_S
                    self._report()

    def _report(self) -> None:
        part = self.folder / "status.part"
        part.write_text(json.dumps({each.name: {"pid": each.pid, "starts": each.starts} for each in self.programs}))
        part.rename(self.folder / "status.json")


def accepts(address: str) -> bool:
    """Whether something listens at a path or at `address:port`."""
    host, _, port = address.rpartition(":")
    where = (host, int(port)) if host else address
    with socket.socket(socket.AF_INET if host else socket.AF_UNIX) as connection:
        connection.settimeout(1)
        return connection.connect_ex(where) == 0


if __name__ == "__main__":
    Supervisor(Path(sys.argv[1])).run()
