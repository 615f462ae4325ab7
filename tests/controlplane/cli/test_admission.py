from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.cli.sweeps import read_grid
from tests.controlplane.plane import Plane as InProcess
from tests.controlplane.plane import serving

from .conftest import Plane, Teragpt


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[InProcess]:
    """A control plane in this process, whose cluster starts nothing."""
    plane = InProcess(tmp_path / "home")
    yield plane
    plane.store.close()


@pytest.fixture
def plane(inside: InProcess) -> Iterator[Plane]:
    with serving(inside.app()) as url:
        yield Plane(url, inside.home)


def test_a_sweep_is_made_shown_and_cancelled(teragpt: Teragpt, inside: InProcess) -> None:
    grid = ["--grid", "learning-rate=1e-3,2e-3", "--grid", "/labels/kind=a"]
    made = teragpt("sweep", "create", "tiny", *grid, "--set", "steps=9", "--name", "rates", "-p", "2")
    assert made.splitlines()[0].endswith(", 2 runs, 2 at a time")
    head, columns, first, second = teragpt("sweep", "show", "rates").splitlines()
    assert head.endswith("2 queued; 2 at a time")
    assert columns.split()[:4] == ["run", "learning_rate", "/labels/kind", "phase"]
    assert first.split()[:4] == ["rates-0", "0.001", "a", "queued"]
    assert second.split()[1] == "0.002"
    assert "2 queued" in teragpt("sweep", "list")
    shown = json.loads(teragpt("sweep", "show", "rates", "--json"))
    assert shown["spec"] == {"size": "tiny", "train": {"steps": 9}}
    teragpt("sweep", "cancel", "rates")
    inside.reconciler.step()
    assert json.loads(teragpt("sweep", "list", "--json"))[0]["phases"] == {"cancelled": 2}


def test_points_come_from_a_file(teragpt: Teragpt, tmp_path: Path) -> None:
    file = tmp_path / "points.json"
    file.write_text('[{"train": {"seed": 1}}, {"train": {"seed": "x"}}]', "utf-8")
    assert "/points/1/train/seed" in teragpt("sweep", "create", "tiny", "--points", str(file), code=2)
    file.write_text("{}", "utf-8")
    assert "holds a dict; allowed: a list" in teragpt("sweep", "create", "tiny", "--points", str(file), code=2)
    assert "is no readable JSON" in teragpt("sweep", "create", "--points", str(tmp_path / "no"), code=2)
    assert "no sweep 'rates'; try: teragpt sweep list" in teragpt("sweep", "show", "rates", code=4)


def test_values_of_a_grid_are_settings_or_json_or_texts() -> None:
    assert read_grid(None) is None
    assert read_grid(["seed=1,2", "/size=tiny,124m", "/compute/nodes=2"]) == {
        "/train/seed": [1, 2],
        "/size": ["tiny", "124m"],
        "/compute/nodes": [2],
    }


def test_a_queue_is_paused_listed_and_resumed(teragpt: Teragpt) -> None:
    assert teragpt("queue", "pause", "--note", "new disks") == "default is paused: 0 waiting, 0 under way\n"
    head, row = teragpt("queue", "list").splitlines()
    assert head.split() == ["name", "state", "waiting", "under_way", "drained", "note"]
    assert row.split(None, 5) == ["default", "paused", "0", "0", "yes", "new disks"]
    assert teragpt("queue", "drain").startswith("default is draining")
    assert json.loads(teragpt("queue", "resume", "--json"))["state"] == "open"
    assert "there is no queue 'other'" in teragpt("queue", "pause", "other", code=4)
