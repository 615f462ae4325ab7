from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from teragpt.calibrate import Load, calibrate, measured
from teragpt.config import ConfigError
from teragpt.plan import cluster_of, plan
from teragpt.plan.calibration import read, recalibrated, write
from teragpt.plan.hardware import DEVICES

TINY = Load(64, (32, 64), ((16, 32), (16, 64)), 32, 1 << 12, 256, 0.002)


def test_what_is_measured_is_a_calibration_that_plans_rest_on(tmp_path: Path) -> None:
    found = measured(TINY, DEVICES["l40s"], torch.device("cpu"), "a processor")
    parts = [part for _, part in found.products["bf16"]]
    assert len(parts) == 2
    assert all(0 < value <= 1 for value in (*parts, found.copy, found.attention_in_step))
    assert found.loss_passes >= 0
    assert found.pointwise > 0
    assert [tokens for _, tokens, rate in found.attention if rate > 0] == [32, 64]
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(asdict(found)))
    assert read(file).measured == "a processor"
    mine = plan({"size": "124m"}, cluster_of("l40s", 1), calibration=file)
    assert mine.measured == "measured on a processor"
    assert mine.best.seconds > plan({"size": "124m"}, cluster_of("l40s", 1)).best.seconds


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    there = tmp_path / "there.json"
    there.write_text("mine")
    with pytest.raises(ConfigError, match=r"calibrate: got .*there.json'; allowed: a file that is not there yet"):
        calibrate(there)
    assert there.read_text() == "mine"


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures the card")
def test_a_machine_without_a_card_measures_a_core(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        calibrate(tmp_path / "core.json", TINY)
    finally:
        torch.set_num_threads(threads)
    mine = plan({"size": "tiny"}, cluster_of("cpu", 2), calibration=tmp_path / "core.json")
    assert mine.measured.startswith("measured on a core of ")
    assert mine.best.seconds > 0


def test_what_runs_took_makes_a_calibration_that_is_as_slow(tmp_path: Path) -> None:
    for gpu in ("h100", "a100", "cpu-core"):
        file = tmp_path / f"{gpu}.json"
        write(file, recalibrated(gpu, [1.1, 1.25, 1.5]))
        before, after = (plan({"size": "124m"}, cluster_of(gpu, 1), calibration=one) for one in (None, file))
        assert after.best.seconds == pytest.approx(1.25 * before.best.seconds, rel=0.02)
        assert "3 runs, whose steps took 1.25 of what was planned (1.1 to 1.5)" in after.measured
    with pytest.raises(ConfigError, match="allowed: a file that is not there yet"):
        write(file, recalibrated("h100", [1.0]))
    with pytest.raises(ConfigError, match="gpu: got 'h200'; allowed: a kind that runs"):
        recalibrated("h200", [])
