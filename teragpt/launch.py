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
    if supervisor.agent.is_alive():  # in a call that waits for other nodes and cannot be ended
        sys.stdout.flush()
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
    if ending.rank is None and ending.code in {CRASHED, BAD_CONFIG}:
        print("error:", *ending.lines, file=sys.stderr)
    else:
        print(f"[launch] {ending}", file=sys.stderr, flush=True)
    if path := termination_log(os.environ):
        try:
            path.write_bytes(ending.message())
        except OSError as error:
            print(f"[launch] no termination message: {path}: {error.strerror}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
