"""Tasks of lm-evaluation-harness, asked of a trained model through its export; what they measure is kept with the run.

The harness is no part of an installation, since training needs none of its packages: `pip install lm-eval accelerate`.
It must not know what a task asks.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from teragpt.checkpoint import as_json
from teragpt.config import ConfigError, Problem
from teragpt.exchange.export import export
from teragpt.inference.evaluate import FOLDER
from teragpt.inference.trained import describe
from teragpt.storage import folder_at

INSTALL = "pip install lm-eval accelerate"


def measure_tasks(run: Path | str, tasks: Sequence[str], folder: Path | None = None) -> dict[str, Any]:
    """Ask the newest checkpoint the harness's tasks of these names, those in YAML files of `folder` too.

    What was measured already is not measured again. Raises ConfigError for tasks that there are not, and where the
    harness is not installed.
    """
    try:
        harness, manager = import_module("lm_eval"), import_module("lm_eval.tasks")
    except ImportError as error:
        raise ConfigError([Problem("tasks", ",".join(tasks), f"tasks once there is `{INSTALL}` ({error})")]) from None
    checkpoint, place = describe(run)[0], folder_at(run, "run") / FOLDER
    own = sorted(folder.glob("*.yaml")) if folder else []
    asked = json.dumps([sorted(tasks), version("lm_eval"), *(path.read_text("utf-8") for path in own)])
    name = f"step-{checkpoint.step:08d}-tasks-{hashlib.sha256(asked.encode()).hexdigest()[:12]}.json"
    if name in place.entries():
        return dict(json.loads(place.read(name)))
    known = manager.TaskManager(include_path=str(folder) if folder else None)
    if unknown := [task for task in tasks if task not in known.all_tasks]:
        raise ConfigError([Problem("tasks", ",".join(unknown), "names that `lm_eval ls tasks` lists")])
    with tempfile.TemporaryDirectory(prefix="teragpt-") as temporary:
        model = {"pretrained": str(export(run, Path(temporary, "model"))), "dtype": "float32"}
        device = "cuda" if torch.cuda.is_available() else "cpu"
        how = {"model": "hf", "model_args": model, "device": device, "task_manager": known}
        told: dict[str, Any] = harness.simple_evaluate(tasks=list(tasks), **how)
    found = {
        "step": checkpoint.step,
        "harness": version("lm_eval"),
        "time": time.time(),
        "tasks": {task: metrics_of(one) for task, one in told["results"].items()},
    }
    place.write(name, as_json(found))
    return found


def metrics_of(result: dict[str, Any]) -> dict[str, float]:
    """The numbers of a task's result: `acc,none` is the accuracy without a filter."""
    return {name: float(value) for name, value in result.items() if "," in name and isinstance(value, int | float)}


def task_table(found: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    """What tasks measured of runs by their names, in lines: runs side by side within each task and metric."""
    rows = [
        (task, metric, run, measured["step"], value)
        for run, measured in found
        for task, metrics in measured["tasks"].items()
        for metric, value in metrics.items()
    ]
    yield f"{'task':24}  {'metric':24}  {'run':24}  {'step':>9}  {'value':>8}"
    for task, metric, run, step, value in sorted(rows):
        yield f"{task:24}  {metric:24}  {run:24}  {step:>9,}  {value:>8.4f}"
