from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from teragpt.config import ConfigError
from teragpt.export import export
from teragpt.harness import INSTALL, measure_tasks, metrics_of, task_table

ANSWERED = {"step": 4, "tasks": {"colours": {"acc,none": 0.5}}}


def test_without_the_harness_the_error_says_how_to_get_it(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=f"tasks: got 'colours'; allowed: tasks once there is `{INSTALL}`"):
        measure_tasks(trained, ["colours"])


def test_the_numbers_of_a_result_are_kept_and_shown() -> None:
    assert metrics_of({"alias": "colours", "acc,none": 0.5, "acc_stderr,none": "N/A", "sample_len": 2}) == {
        "acc,none": 0.5
    }
    assert list(task_table([("first", ANSWERED)]))[1].split() == ["colours", "acc,none", "first", "4", "0.5000"]


def test_the_model_card_tells_what_tasks_measured(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "evaluations").mkdir(exist_ok=True)
    (run / "evaluations" / "step-00000004-tasks-1.json").write_text(json.dumps(ANSWERED), "utf-8")
    card = (export(run, tmp_path / "export") / "README.md").read_text("utf-8")
    assert "| colours | acc,none | 0.5000 |" in card
    assert "held-out source" not in card
