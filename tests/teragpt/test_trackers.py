from __future__ import annotations

import json
import struct
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from teragpt.config import ConfigError, resolve
from teragpt.reporting import trackers
from teragpt.reporting.metrics import Metrics
from tests.teragpt.test_events import curve

SERVICES_S = 240  # their imports take seconds of a busy machine


def attempt(out: Path, number: int, steps: range, **settings: object) -> Metrics:
    config = resolve({"out": str(out), "steps": 4, "warmup_steps": 0, **settings})
    report = Metrics(config, number, 0, 1, 1234, lambda: None)
    for step in steps:
        report.step(step, 1.0 / step, 0.5, 0.1, {"grad_norm/rest": 0.25})
    report.checkpoint(steps[-1])
    assert report.trackers is not None
    report.trackers.close(SERVICES_S)
    report.close()
    return report


def test_every_run_has_tensorboards_files(tmp_path: Path) -> None:
    attempt(tmp_path, 1, range(1, 4))
    attempt(tmp_path, 2, range(3, 5))
    assert [step for step, _ in curve(tmp_path)] == [1, 2, 3, 4]
    assert curve(tmp_path, "grad_norm/rest")[0] == (1, 0.25)
    assert curve(tmp_path, "checkpoint") == [(4, 4.0)]


@pytest.mark.filterwarnings("ignore")  # what the services' packages warn of is theirs to mend
def test_wandb_and_mlflow_have_one_run_of_all_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    out = tmp_path / "run"
    first = attempt(out, 1, range(1, 4), trackers="wandb,mlflow")
    attempt(out, 2, range(3, 5), trackers="wandb, mlflow")
    names = json.loads((out / "trackers.json").read_text())
    recorded = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    told = {name for point in recorded for name in point} - {"seq", "attempt", "step", "time", "mfu"}
    assert first.trackers is not None
    assert not first.trackers.thread.is_alive()

    from mlflow import MlflowClient

    client: Any = MlflowClient()
    run = client.get_run(names["mlflow"])
    assert (run.info.status, run.info.run_name, run.data.params["steps"]) == ("FINISHED", "run", "4")
    assert set(run.data.metrics) == told
    assert [one.step for one in client.get_metric_history(names["mlflow"], "loss")] == [1, 2, 3, 4]

    parts = [list(offline(file)) for file in sorted(out.glob("wandb/offline-run-*/*.wandb"))]
    assert [[step for step, values in part if "loss" in values] for part in parts] == [[1, 2, 3], [3, 4]]
    assert {name for part in parts for _, values in part for name in values} == told
    assert {file.stem for file in out.glob("wandb/offline-run-*/*.wandb")} == {f"run-{names['wandb']}"}


def offline(file: Path) -> Iterator[tuple[int, set[str]]]:
    """The steps of W&B's file of records, each behind a checksum, its length and a kind."""
    messages: Any = import_module("wandb.proto.wandb_internal_pb2")
    content, at = file.read_bytes(), 7
    while at < len(content):
        _, length, _ = struct.unpack_from("<IHB", content, at)
        record = messages.Record.FromString(content[at + 7 : at + 7 + length])
        at += 7 + length
        if record.WhichOneof("record_type") == "history":
            names = {item.key or ".".join(item.nested_key) for item in record.history.item}
            yield record.history.step.num, {name for name in names if not name.startswith("_")}


def test_a_service_without_its_package_or_a_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"trackers: got 'wandb,comet'; allowed: wandb, mlflow, or both"):
        resolve({"trackers": "wandb,comet"})
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"trackers: got 'mlflow'; allowed: .*pip install 'teragpt\[mlflow\]'"):
        trackers.asked_for(resolve({"trackers": "mlflow"}))


def test_a_tracker_that_fails_is_told_of_once_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = threading.Event()

    def away(*_: object) -> None:
        asked.set()
        raise ConnectionError("no such host")

    monkeypatch.setattr(trackers, "WandB", away)
    attempt(tmp_path, 1, range(1, 5), trackers="wandb")
    said = capsys.readouterr().out
    assert asked.is_set()
    assert said.count("wandb gets no more of this run's metrics: ConnectionError: no such host") == 1
    assert [step for step, _ in curve(tmp_path)] == [1, 2, 3, 4]
