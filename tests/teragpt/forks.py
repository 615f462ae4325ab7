"""Ranks as forks of one process that has imported the trainer, which costs each rank of a launch seconds of CPU.

They are real processes that meet over gloo; only their parent differs. What a test says of the launcher, of a rank's
start or of a signal needs `ranks.start` instead. As that process: `python -m tests.teragpt.forks` reads a job a line,
runs its ranks, and answers with the exit code of the first that failed.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

import psutil
from coverage import process_startup

import teragpt

if TYPE_CHECKING:
    from io import TextIOWrapper

ROOT = Path(teragpt.__file__).parents[1]
RUN_BY_RANKS = "teragpt.train", "tests.teragpt.parity", "tests.teragpt.moves", "tests.teragpt.struck"
IMPORTED_LATE = "torch._dynamo", "torch._inductor.pattern_matcher", "tokenizers"  # by a rank that already runs
MEASURE = "COVERAGE_PROCESS_CONFIG"  # what makes a process measure its coverage
PORTS = 20_000, 32_000  # below those that a system gives to whoever asks for any
REFUSED = 2  # the trainer's exit code
LEAVE_S = 10  # for the other ranks, once one has failed
parents: list[subprocess.Popen[str]] = []


def run(
    command: Sequence[str],
    count: int,
    environ: Mapping[str, str],
    seconds: float,
    reached: Callable[[str], bool] | None = None,
    *,
    everyone: bool = True,
    number: int = signal.SIGKILL,
) -> tuple[int, str]:
    """Run a Python module (`-m NAME ...`) or file on `count` ranks: the first failure's exit code, and the output.

    Lines of ranks above 0 begin with theirs. Once `reached` is true of what rank 0 has written, every rank is sent the
    signal of that `number`, or the last alone. Raises TimeoutError after so many seconds; nothing runs any more then.
    """
    if not parents:
        words = [sys.executable, "-m", "tests.teragpt.forks"]
        base = {name: value for name, value in environ.items() if name != MEASURE}  # its imports are others' too
        base |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        parents.append(subprocess.Popen(words, env=base, stdin=-1, stdout=-1, text=True, start_new_session=True))
    parent = parents[0]
    assert parent.stdin is not None
    assert parent.stdout is not None
    with TemporaryDirectory() as folder:
        logs = [f"{folder}/{rank}" for rank in range(count)]
        print(json.dumps([list(command), world(count, environ), logs]), file=parent.stdin, flush=True)
        if reached:
            strike_when(lambda: reached(text(logs[0])), parent, seconds, number, everyone=everyone)
        ready, _, _ = select.select([parent.stdout], [], [], seconds)
        answer = parent.stdout.readline() if ready else ""
        if not answer:
            close()
        said = [text(log) for log in logs]
    output = "".join(
        f"[rank {rank}] {line}" if rank else line
        for rank in range(count)
        for line in said[rank].splitlines(keepends=True)
    )
    if not answer:
        raise TimeoutError(f"still running after {seconds} s, or without a parent:\n{output}")
    return int(answer), output


def strike_when(
    reached: Callable[[], bool], parent: subprocess.Popen[str], seconds: float, number: int, *, everyone: bool
) -> None:
    """Send the ranks that run a signal once `reached`, or never if they end before it or so many seconds pass."""
    assert parent.stdout is not None
    deadline = time.monotonic() + seconds
    while not reached():
        if select.select([parent.stdout], [], [], 0.001)[0] or time.monotonic() > deadline:
            return
    running = sorted(psutil.Process(parent.pid).children(), key=psutil.Process.create_time)
    for one in running if everyone else running[-1:]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(number)


def text(log: str) -> str:
    """What has been written to a file that may not be there yet."""
    return Path(log).read_text() if Path(log).exists() else ""


def close() -> None:
    """End the process that forks, and all of its forks."""
    while parents:
        parent = parents.pop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.communicate()


def world(count: int, environ: Mapping[str, str]) -> list[dict[str, str]]:
    """The variables of each rank, as torchrun sets them."""
    shared = {**environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def free_port() -> int:
    """A port that nobody listens on, and nobody is given who asks for any."""
    while True:
        port = random.SystemRandom().randint(*PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def serve() -> None:
    """Import what ranks import, then run jobs until stdin ends."""
    for name in (*IMPORTED_LATE, *RUN_BY_RANKS):
        importlib.import_module(name)
    for name in RUN_BY_RANKS:
        del sys.modules[name]  # what runs as `__main__` is not imported twice
    gc.freeze()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(first_failure(*json.loads(line)), file=replies, flush=True)


def first_failure(command: list[str], environs: list[dict[str, str]], logs: list[str]) -> int:
    """Run a job's ranks; when one fails, the others have some seconds to end by themselves."""
    pids = {fork(command, environ, log) for environ, log in zip(environs, logs, strict=True)}
    code, deadline = 0, float("inf")
    while pids:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            pids.discard(pid)
            ended = os.waitstatus_to_exitcode(status)
            if ended and not code:
                code, deadline = ended if ended > 0 else 128 - ended, time.monotonic() + LEAVE_S
                for left in pids if code == REFUSED else ():  # as launchers do; after a crash they wait for each other
                    os.kill(left, signal.SIGTERM)
            continue
        if time.monotonic() > deadline:
            for left in pids:
                os.kill(left, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.005)
    return code


def fork(command: list[str], environ: dict[str, str], log: str) -> int:
    """A rank: its pid."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        code = become(command, environ, log)
    except BaseException:  # noqa: BLE001 - as the interpreter does, of which this is the end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def become(command: list[str], environ: dict[str, str], log: str) -> int:
    """Be what `python COMMAND` would be; returns the exit code."""
    os.environ.clear()
    os.environ.update(environ)
    into = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(into, number)
    if environ["RANK"] in {"0", str(int(environ["WORLD_SIZE"]) - 1)}:
        process_startup(force=True)  # what the first and the last rank run is all that is run
    for stream in (sys.stdout, sys.stderr):
        cast("TextIOWrapper", stream).reconfigure(line_buffering=True)
    module = command[0] == "-m"
    sys.argv = command[1:] if module else command
    try:
        if module:
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    serve()
