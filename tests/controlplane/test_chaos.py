"""Never lost, never doubled, on one machine: kill -9 at each named point and at random instants (docs/chaos.md).

TERAGPT_CHAOS_INSTANTS (20) says how many of those, TERAGPT_CHAOS_SEED (7) which. With TERAGPT_CHAOS_ROUND that round
alone is played, as often as TERAGPT_CHAOS_ROUNDS says, with the point that TERAGPT_CHAOS_POINT names.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.chaos.control import points
from tests.controlplane.chaos import RARE, Suite, local_points, play

INSTANTS = int(os.environ.get("TERAGPT_CHAOS_INSTANTS", "20"))
SEED = int(os.environ.get("TERAGPT_CHAOS_SEED", "7"))
ROUND, POINT = os.environ.get("TERAGPT_CHAOS_ROUND"), os.environ.get("TERAGPT_CHAOS_POINT", "")
MOST = 100  # rounds until every point was hit
pytestmark = [pytest.mark.timeout(0), pytest.mark.unmeasured]  # every wait in here has its own end


@pytest.fixture
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    print(f"chaos on one machine: seed {SEED}, {INSTANTS} random instants")
    made = Suite(tmp_path_factory.mktemp("chaos"), SEED)
    yield made
    print(made.table())
    made.close()


# Where the server dies in the middle of a reply, httpx leaves its socket to Python's collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(ROUND is not None, reason="one round is played again")
def test_whatever_is_killed_no_run_is_lost_and_none_is_doubled(suite: Suite) -> None:
    while suite.instants() < INSTANTS or (suite.unhit() and suite.rounds < MOST):
        play(suite, suite.rounds, strikes=min(2, max(0, INSTANTS - suite.instants())))
    assert not suite.unhit(), "points at which the control plane never died"


@pytest.mark.skipif(ROUND is None, reason="only with TERAGPT_CHAOS_ROUND")
def test_one_round_again(suite: Suite) -> None:
    for _ in range(int(os.environ.get("TERAGPT_CHAOS_ROUNDS", "1"))):
        play(suite, int(ROUND or 0), point=POINT)


def test_a_point_that_a_round_does_not_come_to_gives_way(tmp_path: Path) -> None:
    suite = Suite(tmp_path, SEED)
    try:
        assert len({suite.arm("") for _ in range(3)}) > 1
        assert suite.arm("row taken:2") == "row taken:2"
    finally:
        suite.close()


def test_most_named_points_are_passed_on_one_machine() -> None:
    assert set(points()) > RARE
    assert len(local_points()) > 20
