from __future__ import annotations

from pathlib import Path

import pytest
import torch

from teragpt.average import average, main, tensors
from teragpt.checkpoint import published
from teragpt.config import ConfigError
from teragpt.inference.trained import load
from teragpt.storage import Disk
from tests.teragpt import ranks


def test_parameters_are_the_mean_and_moments_the_last_ones(trained: Path, tmp_path: Path) -> None:
    made = average(trained, tmp_path / "mean", 2)
    first, last = (tensors(one) for one in published(Disk(trained)))
    mean = tensors(made)
    assert made.step == 4
    assert mean.keys() == last.keys()
    for name, value in mean.items():
        expected = last[name] if name.endswith(("exp_avg", "exp_avg_sq")) else (first[name] + last[name]) / 2
        assert torch.equal(value, expected), name


def test_the_mean_is_sampled_and_started_from(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(trained), str(tmp_path / "mean"), "--last", "2"]) == 0
    assert "the mean of 2 checkpoints is" in capsys.readouterr().out
    model, _, _ = load(tmp_path / "mean")
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    code, output = ranks.train({"out": tmp_path / "run", "start_from": tmp_path / "mean", "steps": 6})
    assert code == 0, output
    assert list(ranks.curve(output)) == [5, 6]


@pytest.mark.parametrize("last", [0, 3])
def test_more_checkpoints_than_there_are_is_refused(trained: Path, tmp_path: Path, last: int) -> None:
    with pytest.raises(ConfigError, match=f"last: got {last}; allowed: a whole number from 1 to 2"):
        average(trained, tmp_path / "mean", last)


def test_a_folder_in_use_is_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(trained), str(trained), "--last", "1"]) == 2
    assert "out: got" in capsys.readouterr().err
