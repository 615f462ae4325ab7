"""Never lost, never doubled: seeded rounds of what goes wrong, on a real API server and etcd (docs/chaos.md).

TERAGPT_CHAOS_ROUNDS (60), TERAGPT_CHAOS_SEED (20781), TERAGPT_CHAOS_OUTAGE (seconds of the last outage, 30) and
TERAGPT_CHAOS_PATIENCE (1; more on a loaded machine) change what is played.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.cluster.chaos.rounds import Suite, outage, play

ROUNDS = int(os.environ.get("TERAGPT_CHAOS_ROUNDS", "60"))
SEED = int(os.environ.get("TERAGPT_CHAOS_SEED", "20781"))
OUTAGE_S = float(os.environ.get("TERAGPT_CHAOS_OUTAGE", "30"))
DEATHS = {7: "kube-apiserver", 19: "etcd"}  # every 24 rounds, in the round of that number
pytestmark = pytest.mark.timeout(0)  # every wait in here has its own end


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    print(f"chaos: seed {SEED}, {ROUNDS} rounds")
    made = Suite(tmp_path_factory.mktemp("chaos"), SEED)
    yield made
    made.close()


def test_whatever_goes_wrong_no_run_is_lost_and_none_is_doubled(suite: Suite) -> None:
    for number in range(ROUNDS):
        play(suite, number, dies=DEATHS.get(number % 24))
    extra = ROUNDS
    while suite.unhit() and extra < 2 * ROUNDS:  # a point may be passed less often than it was to count
        play(suite, extra)
        extra += 1
    hits, met = sum(suite.control.hits.values()), dict(suite.proxy.weather.met)
    print(f"chaos: {extra} rounds, {suite.runs} runs, {hits} deaths at points, {suite.control.kills} others")
    print(f"chaos: on the way to the API server {met}; else {dict(suite.blows)}")
    print(f"chaos: the slowest round was over {suite.slowest_s:.1f} s after its last fault")
    assert not suite.unhit(), "points at which the control plane never died"


def test_after_an_outage_everything_catches_up(suite: Suite) -> None:
    took = outage(suite, OUTAGE_S)
    print(f"chaos: everything was over {took:.1f} s after an outage of {OUTAGE_S:.0f} s")
