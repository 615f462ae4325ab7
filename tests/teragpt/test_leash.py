from __future__ import annotations

import os
import signal
import subprocess
import sys

from teragpt.launcher import leash


def leashed(parent: int, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, leash.__file__, str(parent), *command], capture_output=True, text=True, check=False
    )


def test_the_process_becomes_the_program_with_signals_as_a_program_expects_them() -> None:
    ignored = leashed(os.getpid(), "sh", "-c", 'echo $$; grep SigIgn /proc/$$/status; echo "$@"', "sh", "a b", "c")
    assert ignored.returncode == 0
    _, mask, arguments = ignored.stdout.splitlines()
    # Under make, signal 32 is ignored: it is glibc's own, and its posix_spawn leaves it so. SIGUSR1 is, on purpose.
    assert int(mask.split()[1], 16) & ~(1 << 31) == 1 << (signal.SIGUSR1 - 1)
    assert arguments == "a b c"


def test_a_launcher_that_has_died_leaves_no_rank() -> None:
    assert leashed(os.getpid() + 1, "echo", "lived").returncode == 137


def test_a_program_that_cannot_run_is_bad_input() -> None:
    ended = leashed(os.getpid(), "no-such-program")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: program: got 'no-such-program'")
