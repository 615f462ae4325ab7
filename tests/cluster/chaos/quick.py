"""The control plane with its clocks run faster, so that a round takes seconds, and forked: it starts hundreds of times.

Only waits are shorter, those of the product's own constants. `python -m tests.cluster.chaos.quick` imports what a
server does and then forks one for each line that asks: a real process, killed like any, at a tenth of the cost. The
file that TERAGPT_CHAOS_CLOCK names holds by how many seconds its wall clock is wrong, whenever it is read.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.cluster.layout import CHECKOUT

CLOCK = "TERAGPT_CHAOS_CLOCK"
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
LOOK_S = 0.01
IMPORTED = (  # by a server until its first answer
    "alembic.autogenerate",
    "controlplane.api.app",
    "controlplane.clusters.kubernetes",
    "controlplane.reconcile.notifier",
    "controlplane.reconcile.packer",
    "controlplane.reconcile.reconciler",
    "controlplane.server",
    "uvicorn",
)


class Forks:
    """The process that forks. Its servers end with it, and it with `leash`'s process."""

    def __init__(self, leash: Sequence[str]) -> None:
        command = [*leash, sys.executable, "-m", "tests.cluster.chaos.quick"]
        self._parent = subprocess.Popen(command, cwd=CHECKOUT, stdin=-1, stdout=-1, text=True)

    def ask(self, *words: object) -> int | None:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        print(json.dumps(words), file=self._parent.stdin, flush=True)
        answer: int | None = json.loads(self._parent.stdout.readline())
        return answer

    def close(self) -> None:
        self._parent.kill()
        self._parent.communicate()


class Server:
    """A forked server, with a Popen's words."""

    def __init__(self, forks: Forks, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._forks = forks
        self.pid = forks.ask("start", arguments, dict(environment), str(log)) or 0

    def poll(self) -> int | None:
        return self._forks.ask("poll", self.pid)

    def wait(self, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < deadline, "it does not end"
            time.sleep(LOOK_S)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def serve() -> None:
    """Import all, then do what each line asks and answer with a line, until there is none."""
    time.time = wrong(time.time)  # before anything takes it as a default
    for name in IMPORTED:
        importlib.import_module(name)
    hurry()
    gc.freeze()
    ended: dict[int, int] = {}
    for line in sys.stdin:
        what, *words = json.loads(line)
        answer = fork(*words) if what == "start" else code_of(ended, *words)
        print(json.dumps(answer), flush=True)


def code_of(ended: dict[int, int], pid: int) -> int | None:
    """The exit code of a server that has ended: -n for a signal n."""
    if pid not in ended:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            ended[pid] = os.waitstatus_to_exitcode(status)
    return ended.get(pid)


def fork(arguments: list[str], environment: dict[str, str], log: str) -> int:
    """A server: its pid."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        code = become(arguments, environment, log)
    finally:
        os._exit(code)


def become(arguments: list[str], environment: dict[str, str], log: str) -> int:
    """Be what `python -m controlplane.server` would be; returns the exit code."""
    from controlplane import faults, server

    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    os.environ.clear()
    os.environ.update(environment)
    into = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(into, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if told := os.environ.get(faults.VARIABLE):
        faults._armed = faults.Armed(told)
    return server.main(arguments)


def wrong(clock: Callable[[], float]) -> Callable[[], float]:
    """A clock that is ahead by what the file says."""

    def read() -> float:
        with suppress(OSError):
            return clock() + float(Path(os.environ.get(CLOCK, "")).read_text())
        return clock()

    return read


def hurry() -> None:
    """Shorten the product's waits."""
    from controlplane.clusters.kubernetes import cluster, informer, logs, submission
    from controlplane.reconcile import reconciler
    from controlplane.reconcile.pace import Pace

    quick = Pace(tick_s=0.2, idle_s=1.0, first_backoff_s=0.2, longest_backoff_s=1.0, longest_submit_backoff_s=2.0)
    setattr(reconciler, "Pace", lambda: quick)  # noqa: B010 - the name that a reconciler without a pace of its own takes
    informer.BACKOFF_S = (0.1, 1.0)
    informer.LOST_S = 3.0
    submission.HELD_S = 5
    logs.TROUBLE_S = 0.3
    logs.AGAIN_S = 0.2
    cluster.KEEP_S = 0.2
    cluster.LOOK_SOON_S = 1.0
    cluster.LOGS_AT_MOST_S = 5.0


if __name__ == "__main__":
    serve()
