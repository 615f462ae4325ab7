"""Ties a rank to its launcher: the kernel kills it when the launcher dies, however that dies. Then becomes the rank.

Run by path as `python -I -S leash.py LAUNCHER_PID PROGRAM ARGUMENT...`, with nothing else on the path, since every
millisecond here is spent before each rank. Imports nothing of teragpt.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2); kept across execve


def main(launcher: int, command: list[str]) -> None:
    """Become `command`, to be killed when process `launcher` ends. Exits 137 if that has ended, 2 without program."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:  # it died before the kernel was told
        sys.exit(128 + signal.SIGKILL)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it asks for a checkpoint, also who does not listen yet
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored_by_python, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)  # noqa: S606 - the user's own program, without a shell
    except OSError as error:
        print(f"error: program: got {command[0]!r}; allowed: one that can be run ({error.strerror})", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
