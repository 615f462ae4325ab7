"""Never lost, never doubled: seeded rounds of what goes wrong, on a real API server and etcd (docs/chaos.md).

TERAGPT_CHAOS_ROUNDS (60), TERAGPT_CHAOS_SEED (20781), TERAGPT_CHAOS_OUTAGE (seconds of the last outage, 30) and
TERAGPT_CHAOS_PATIENCE (1; more on a loaded machine) change what is played. With TERAGPT_CHAOS_ROUND that round alone is
played, as often as TERAGPT_CHAOS_ROUNDS says, with the point that TERAGPT_CHAOS_POINT names.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.chaos.api import wait
from tests.cluster.chaos.rounds import RESTORE, Suite, outage, play
from tests.cluster.layout import CHECKOUT

ROUNDS = int(os.environ.get("TERAGPT_CHAOS_ROUNDS", "60"))
SEED = int(os.environ.get("TERAGPT_CHAOS_SEED", "20781"))
OUTAGE_S = float(os.environ.get("TERAGPT_CHAOS_OUTAGE", "30"))
ROUND, POINT = os.environ.get("TERAGPT_CHAOS_ROUND"), os.environ.get("TERAGPT_CHAOS_POINT", "")
DEATHS = {7: "kube-apiserver", 13: RESTORE, 19: "etcd"}  # of every 24 rounds, in the round of that number
TOLD_EVERY = 10  # rounds
pytestmark = pytest.mark.timeout(0)  # every wait in here has its own end
BRIEF = """
import pathlib, sys, time
from tests.cluster.chaos.rounds import Suite
suite = Suite(pathlib.Path(sys.argv[1]), 1)
print(suite.control.process.pid, *(one.pid for one in suite.server._processes.values()), flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    print(f"chaos: seed {SEED}, {ROUNDS} rounds")
    made = Suite(tmp_path_factory.mktemp("chaos"), SEED)
    yield made
    print(made.table())
    made.close()


@pytest.mark.skipif(ROUND is not None, reason="one round is played again")
def test_whatever_goes_wrong_no_run_is_lost_and_none_is_doubled(suite: Suite) -> None:
    began = time.monotonic()
    for number in range(ROUNDS):
        play(suite, number, dies=DEATHS.get(number % 24))
        if suite.rounds % TOLD_EVERY == 0:
            took_s = time.monotonic() - began
            left_s = took_s / suite.rounds * (ROUNDS - suite.rounds)
            print(f"chaos: {suite.rounds} of {ROUNDS} rounds in {took_s:,.0f} s, {left_s:,.0f} s left", flush=True)
    while suite.unhit() and suite.rounds < 2 * ROUNDS:  # a point may be passed less often than it was to count
        play(suite, suite.rounds)
    assert not suite.unhit(), "points at which the control plane never died"


@pytest.mark.skipif(ROUND is None, reason="only with TERAGPT_CHAOS_ROUND")
def test_one_round_again(suite: Suite) -> None:
    number = int(ROUND or 0)
    for again in range(ROUNDS):
        play(suite, number, dies=DEATHS.get(number % 24), point=POINT, again=again)


@pytest.mark.skipif(ROUND is not None, reason="one round is played again")
def test_after_an_outage_everything_catches_up(suite: Suite) -> None:
    outage(suite, OUTAGE_S)


def test_a_suite_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BRIEF, str(tmp_path)]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left = [int(pid) for pid in process.stdout.readline().split()]
        process.send_signal(signal.SIGKILL)
    assert len(left) == 3
    wait("their end", lambda: not any(alive(pid) for pid in left), 10)


def alive(pid: int) -> bool:
    """Whether the process is there, and no mere entry that nobody has read yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
