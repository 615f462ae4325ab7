"""SIGTERM and SIGKILL at any instant of a save, a load, a compilation or a step, on several meshes (docs/chaos.md).

TERAGPT_STRIKES (10) says how many rounds, TERAGPT_CHAOS_SEED (7) which, TERAGPT_CHAOS_ROUND plays one of them again.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from tests.teragpt.rounds import CALLS, CODES, MESHES, drawn, play, whole_run

pytestmark = [pytest.mark.timeout(900), pytest.mark.unmeasured]
SEED, ROUND = int(os.environ.get("TERAGPT_CHAOS_SEED", "7")), os.environ.get("TERAGPT_CHAOS_ROUND")
ROUNDS = [int(ROUND)] if ROUND else range(int(os.environ.get("TERAGPT_STRIKES", "10")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.mark.parametrize("number", ROUNDS)
def test_a_run_that_is_struck_goes_on_as_if_nothing_had_been(number: int, tmp_path: Path, folder: Path) -> None:
    print(f"make chaos TESTS=tests/teragpt/test_chaos.py SEED={SEED} ROUND={number}")
    game = drawn(SEED, number)
    print(play(game, tmp_path, whole_run(game.mesh, folder)))


def test_rounds_have_each_phase_by_each_signal_and_on_each_mesh() -> None:
    ten, twenty = ([drawn(SEED, number) for number in range(count)] for count in (10, 20))
    assert {(one.strike.phase, one.strike.number) for one in ten} == set(itertools.product(CALLS, map(int, CODES)))
    assert {one.mesh for one in ten} == set(MESHES)
    assert {(one.mesh, one.strike.phase) for one in twenty} == set(itertools.product(MESHES, CALLS))
