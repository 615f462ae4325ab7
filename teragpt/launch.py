"""Starts the ranks of one pod: `python -m teragpt.launch [torchrun's options] -m teragpt.train [arguments]`.

torchrun with an ending that a control plane can read: the first failing rank's exit code, a termination message, time
for a checkpoint on SIGTERM. What it does is docs/environment.md. Torch is imported last, in the agent's thread, so that
a stop signal or a bad environment never waits for it.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from teragpt.config import ConfigError
from teragpt.launcher.environment import read_grace, termination_log
from teragpt.launcher.supervise import Supervisor, fate
from teragpt.launcher.termination import BAD_CONFIG, CRASHED, FINISHED, Ending

AGENT_S = 1.0  # for the agent to see that its ranks have ended


def main(arguments: Sequence[str]) -> None:
    """Run the ranks and leave with the code of the first that failed: 128 + n for a signal n."""
    try:
        supervisor = Supervisor(read_grace(os.environ), sys.stdout.buffer)
    except ConfigError as error:
        report(fate(error))
        sys.exit(BAD_CONFIG)
    ending = supervisor.run(lambda: start(arguments, supervisor))
    report(ending)
    supervisor.agent.join(AGENT_S if supervisor.over.is_set() else 0)
    if not flushed() or supervisor.agent.is_alive():  # in a call that waits for other nodes and cannot be ended
        os._exit(ending.code)
    sys.exit(ending.code)


def start(arguments: Sequence[str], supervisor: Supervisor) -> None:
    """The agent's thread."""
    gc.disable()  # importing torch makes no garbage worth a search: a twentieth of its time
    from teragpt.launcher import agent

    gc.enable()
    agent.run(arguments, supervisor)


def report(ending: Ending) -> None:
    """Say how it ended, when not well: to people on stderr, to Kubernetes in the termination message."""
    if ending.code == FINISHED:
        return
    before_ranks = ending.rank is None and ending.code in {CRASHED, BAD_CONFIG}
    told = [f"error: {' '.join(ending.lines)}" if before_ranks else f"[launch] {ending}"]
    if path := termination_log(os.environ):
        try:
            write_over(path, ending.message())
        except OSError as error:
            told.append(f"[launch] no termination message: {path}: {error.strerror}")
    with suppress(OSError):  # as on a disk that is full: the code and the message tell it
        print(*told, sep="\n", file=sys.stderr, flush=True)


def write_over(path: Path, data: bytes) -> None:
    """Write in place of what is there, from its first byte on: room that was set aside stays ours on a full disk."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644), "wb") as file:  # noqa: PTH123 - a descriptor
        file.write(data)
        file.truncate()


def flushed() -> bool:
    """Whether all that was printed is out; where it is not, Python would try again and end with 120."""
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
