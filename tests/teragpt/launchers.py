"""Launchers as forks of a process that has imported torch, which costs each of them seconds of CPU.

They are real processes with streams, signals and an end of their own; only their parent differs. As that parent,
`python -m tests.teragpt.launchers` reads what to run, a line each, and says which process that is and how it ended.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from coverage import process_startup

IMPORTED = "torch.distributed.run", "torch.distributed.elastic.agent.server.local_elastic_agent"  # by an agent
LOOK_S = 0.005  # between looks at whether one has ended


class Parent:
    """The process whose forks they are."""

    def __init__(self, root: Path) -> None:
        words = [sys.executable, "-m", "tests.teragpt.launchers"]
        environ = {**os.environ, "PYTHONPATH": str(root)}
        process = subprocess.Popen(words, env=environ, stdin=-1, stdout=-1, bufsize=0, start_new_session=True)
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._requests, self._replies = process, process.stdin, process.stdout
        self._folder = TemporaryDirectory()
        self._numbers = count()
        self._ended: dict[int, int] = {}

    def start(self, command: Sequence[str], cwd: Path, environ: Mapping[str, str]) -> Forked:
        """Be what `python COMMAND` would be there."""
        streams = Path(self._folder.name, str(next(self._numbers)))
        request = {"command": list(command), "cwd": str(cwd), "environ": dict(environ), "streams": str(streams)}
        self._requests.write(json.dumps(request).encode() + b"\n")
        while True:
            pid, code = self._told()
            if code is None:
                return Forked(self, pid, streams)

    def wait(self, pid: int, seconds: float) -> int:
        """The exit code, as subprocess gives it. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while pid not in self._ended:
            if not select.select([self._replies], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"still running after {seconds} s")
            self._told()
        return self._ended[pid]

    def running(self, pid: int) -> bool:
        """Whether it is not known to have ended."""
        while select.select([self._replies], [], [], 0)[0]:
            self._told()
        return pid not in self._ended

    def close(self) -> None:
        """End it and all of its forks."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._folder.cleanup()

    def _told(self) -> tuple[int, int | None]:
        """What it says next: a process, and how it ended; None where it has begun."""
        line = self._replies.readline()
        assert line, "the parent of launchers has ended"
        pid, code = json.loads(line)
        if code is not None:
            self._ended[pid] = code
        return pid, code


@dataclass(frozen=True)
class Forked:
    """A process that runs; it writes to files."""

    parent: Parent
    pid: int
    streams: Path

    def send_signal(self, number: int) -> None:
        """Nothing where it has ended."""
        if self.parent.running(self.pid):
            os.kill(self.pid, number)

    def end(self, seconds: float) -> tuple[int, str, str]:
        """Exit code, stdout and stderr, once it has ended."""
        code = self.parent.wait(self.pid, seconds)
        out, err = (self.streams.with_suffix(suffix).read_text() for suffix in (".out", ".err"))
        return code, out, err


def serve() -> None:
    """Fork for each line of stdin; a fork returns once it is what it shall be."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    replies, running = os.dup(1), set[int]()
    os.dup2(2, 1)
    with open(0, "rb", buffering=0, closefd=False) as requests:
        while True:
            if select.select([requests], [], [], LOOK_S if running else None)[0]:
                if not (line := requests.readline()):
                    return
                if not (pid := os.fork()):
                    os.close(replies)
                    break
                running.add(pid)
                tell(replies, pid, None)
            for pid in [*running]:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    running.discard(pid)
                    tell(replies, pid, os.waitstatus_to_exitcode(status))
    become(**json.loads(line))


def tell(replies: int, pid: int, code: int | None) -> None:
    """Say that a process has begun, or how it ended."""
    os.write(replies, json.dumps([pid, code]).encode() + b"\n")


def become(command: list[str], cwd: str, environ: dict[str, str], streams: str) -> None:
    """Be what `python COMMAND` would be; it ends as this process does."""
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    for number, name in enumerate((os.devnull, f"{streams}.out", f"{streams}.err")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    process_startup(force=True)
    module, sys.argv = command[0] == "-m", command[command[0] == "-m" :]
    if module:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    serve()
