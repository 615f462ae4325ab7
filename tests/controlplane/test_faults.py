"""Named instants: one that is armed ends the process at its count, and nothing else ever does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from controlplane.faults import VARIABLE, Armed
from tests.cluster.chaos.control import points

PASSES = """
from controlplane.faults import fault
for one in "abab":
    print(one, flush=True)
    fault(one)
"""


@pytest.mark.parametrize(
    ("armed", "passed", "code"),
    [("b:2", "abab", -signal.SIGKILL), ("b", "ab", -signal.SIGKILL), ("c:1", "abab", 0), ("", "abab", 0)],
)
def test_the_process_dies_as_it_comes_by_for_the_nth_time(armed: str, passed: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PASSES], env={**os.environ, VARIABLE: armed}, capture_output=True, text=True, check=False
    )
    assert (done.stdout.split(), done.returncode) == ([*passed], code)


def test_it_dies_once(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *call: killed.append(call))
    armed = Armed("here:2")
    for _ in range(4):
        armed.reach("here")
        armed.reach("there")
    assert killed == [(os.getpid(), signal.SIGKILL)]


def test_about_thirty_instants_have_a_name() -> None:
    assert len(points()) >= 30
