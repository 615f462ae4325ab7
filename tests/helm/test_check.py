"""The script of `helm test`, against a control plane of this process."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from sqlalchemy import select

from controlplane.services import metrics, runs
from controlplane.store.tables import Run
from tests.controlplane.memory_cluster import MemoryCluster
from tests.controlplane.plane import Plane, serving
from tests.helm.rendered import script

TOKEN = "a-token"
POINTS = [{"seq": seq, "step": seq, "time": 1795518320.0 + seq, "loss": 1.0 / seq} for seq in (1, 2)]


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    plane = Plane(tmp_path / "home", token=TOKEN)
    yield plane
    plane.store.close()


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script with its mounts in a folder of the test's."""
    module = script("check")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "spec.json").write_text(json.dumps({"size": "tiny", "train": {"steps": 2}}))
    monkeypatch.setattr(module, "Path", lambda path: tmp_path / Path(path).name)
    monkeypatch.setenv("TIMEOUT_S", "60")
    return module


def checked(check: ModuleType, plane: Plane, monkeypatch: pytest.MonkeyPatch, *, checkpoint: bool) -> int:
    """Its exit code, where the run trains while the script waits, and leaves a checkpoint or none."""

    def trains(_: float) -> None:
        (run,) = plane.cluster.jobs.values() if plane.cluster.jobs else [None]
        with plane.store.read() as session:
            run_id = session.scalars(select(Run.id)).one()
        if run is None:
            name = plane.start(run_id)
            plane.write(name, "step 2/2\n")
            metrics.add_metrics(plane.context, run_id, 1, POINTS)
            if checkpoint:
                made = Path(runs.get(plane.context, run_id).folder) / "checkpoints/step-00000002-attempt-1"
                made.mkdir(parents=True)
                (made / "meta.json").write_text("{}")
        else:
            plane.succeed(run_id)

    monkeypatch.setattr(check, "time", SimpleNamespace(sleep=trains, monotonic=time.monotonic))
    with serving(plane.app()) as url:
        monkeypatch.setenv("API", url)
        code: int = check.main()
    return code


def test_a_run_that_trained_is_checked_and_removed_for_good(
    check: ModuleType, plane: Plane, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checked(check, plane, monkeypatch, checkpoint=True) == 0
    told = capsys.readouterr().out
    assert "succeeded; 2 points, last checkpoint at step 2" in told
    assert "the run is removed for good, with its files at " in told
    with plane.store.read() as session:
        assert not session.scalars(select(Run.id)).all()
    assert not [*(plane.home / "runs").iterdir()]


def test_where_nobody_is_asked_for_a_token_there_need_be_none(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").unlink()
    (tmp_path / "spec.json").write_text("{}")
    plane = Plane(tmp_path / "open")
    assert checked(check, plane, monkeypatch, checkpoint=False) == 0
    plane.store.close()
    assert "the API answers" in capsys.readouterr().out


def test_one_that_left_no_checkpoint_is_removed_too_and_what_lacks_is_said(
    check: ModuleType, plane: Plane, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checked(check, plane, monkeypatch, checkpoint=False) == 1
    told = capsys.readouterr()
    assert "error: no checkpoint was reported" in told.err
    with plane.store.read() as session:
        assert not session.scalars(select(Run.id)).all()


def test_one_that_failed_is_explained_with_its_last_lines_and_removed(
    check: ModuleType, plane: Plane, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plane, "succeed", lambda run_id: fails(plane, run_id))
    assert checked(check, plane, monkeypatch, checkpoint=False) == 1
    told = capsys.readouterr()
    assert "error: the run is failed, not succeeded: ConfigError: " in told.err
    assert "ConfigError" in told.out
    assert "step 2/2" in told.out
    with plane.store.read() as session:
        assert not session.scalars(select(Run.id)).all()


def fails(plane: Plane, run_id: str) -> None:
    plane.cluster.end(str(runs.get(plane.context, run_id).kubernetes["name"]), 2)
    plane.reconciler.step()


def test_one_that_does_not_end_in_time_is_cancelled_and_removed(
    check: ModuleType, plane: Plane, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def delete(name: str, uid: str | None = None) -> None:
        MemoryCluster.delete(plane.cluster, name, uid)
        plane.cluster.stop(name)

    monkeypatch.setenv("TIMEOUT_S", "0")
    monkeypatch.setattr(plane.cluster, "delete", delete)
    plane.reconciler.start()
    try:
        assert checked(check, plane, monkeypatch, checkpoint=False) == 1
    finally:
        plane.reconciler.stop()
    assert "error: the run is queued, not succeeded" in capsys.readouterr().err
    with plane.store.read() as session:
        assert not session.scalars(select(Run.id)).all()
