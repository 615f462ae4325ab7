from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from teragpt.compute.determinism import VARIABLES, deterministic
from tests.teragpt import ranks


def test_the_mode_holds_while_its_context_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "before")  # what a user has set stays
    with deterministic(on=True):
        assert torch.are_deterministic_algorithms_enabled()
        assert {os.environ[name] for name in VARIABLES} == {"before"}
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(on=False):
        assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("count", [1, 2])
def test_two_runs_are_equal_to_the_last_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, VARIABLES[name])  # so that they are taken away again
    states = []
    for run in ("one", "two"):
        code, output = ranks.train({"out": tmp_path / run, "steps": 3, "deterministic": True}, count)
        assert code == 0, output
        files = sorted((tmp_path / run).glob("checkpoints/step-00000003-*/*.distcp"))
        states.append([path.read_bytes() for path in files])
    assert len(states[0]) == count
    assert states[0] == states[1]
